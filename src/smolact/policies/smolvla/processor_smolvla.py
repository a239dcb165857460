"""SmolVLA's preprocessor (names, instruction, device, normalization) and postprocessor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smolact.policies.base import default_steps
from smolact.policies.smolvla.configuration_smolvla import SmolVLAConfig
from smolact.processors.factory import make_pipelines
from smolact.processors.pipeline import ProcessorPipeline
from smolact.processors.steps import SmolVLANewLineProcessor
from smolact.processors.tokenizer import Tokenizer, TokenizerProcessorStep

__all__ = ["SmolVLANewLineProcessor", "TokenizerProcessorStep", "make_smolvla_pre_post_processors"]


def make_smolvla_pre_post_processors(
    config: SmolVLAConfig,
    dataset_stats: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    tokenizer: Tokenizer | None = None,
    rename_map: Mapping[str, str] | None = None,
) -> tuple[ProcessorPipeline, ProcessorPipeline]:
    """Make the preprocessor and the postprocessor, with LeRobot's steps in LeRobot's order.

    Args:
        config: the policy's, with its features.
        dataset_stats: the normalization statistics; without them the first batch raises a `StatisticsError`.
        tokenizer: the VLM's; without it, `config.vlm_model_name` must be a folder that contains one.
        rename_map: the dataset's names to the policy's.

    Raises:
        StatisticsError: a statistic is missing or not finite.
        DeviceError: `config.device` is not available.
        ConfigError: no tokenizer was given or found.
    """
    steps = default_steps(config, dataset_stats, rename_map)
    before = [
        steps.rename_observations,
        steps.add_batch_dimension,
        SmolVLANewLineProcessor(),
        TokenizerProcessorStep(
            tokenizer_name=config.vlm_model_name,
            tokenizer=tokenizer,
            padding=config.pad_language_to,
            padding_side="right",
            max_length=config.tokenizer_max_length,
        ),
        steps.to_device,
        steps.normalize,
    ]
    return make_pipelines(before, [steps.unnormalize, steps.to_cpu])

"""The processors of `smolvla_fast`: LeRobot's steps for SmolVLA, and a tokenizer step for smolact's presets."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lerobot.policies.smolvla.processor_smolvla import make_smolvla_pre_post_processors
from lerobot.processor import ProcessorStepRegistry, TokenizerProcessorStep
from transformers import AutoTokenizer

from lerobot_policy_smolact.configuration_smolvla_fast import SmolVLAFastConfig
from smolact.backbones.presets import PRESETS, find_vlm


@ProcessorStepRegistry.register("smolact_tokenizer_processor")
@dataclass
class SmolactTokenizerStep(TokenizerProcessorStep):
    """LeRobot's step for a preset's name, with the tokenizer that smolact ships."""

    def __post_init__(self) -> None:
        folder = find_vlm(str(self.tokenizer_name)).tokenizer_folder()
        self.input_tokenizer = AutoTokenizer.from_pretrained(str(folder))


def make_smolvla_fast_pre_post_processors(
    config: SmolVLAFastConfig, dataset_stats: Mapping[str, Mapping[str, Any]] | None = None
) -> tuple[Any, Any]:
    """Return the preprocessor and the postprocessor."""
    name = config.vlm_model_name
    if name not in PRESETS:
        return make_smolvla_pre_post_processors(config, dataset_stats)
    folder = str(find_vlm(name).tokenizer_folder())
    preprocessor, postprocessor = make_smolvla_pre_post_processors(
        dataclasses.replace(config, vlm_model_name=folder), dataset_stats
    )
    preprocessor.steps = [_for_preset(step, name) for step in preprocessor.steps]
    return preprocessor, postprocessor


def _for_preset(step: Any, name: str) -> Any:
    """Give LeRobot's tokenizer step the preset's name instead of this machine's folder; return other steps unchanged."""
    if not isinstance(step, TokenizerProcessorStep):
        return step
    return SmolactTokenizerStep(**{**step.get_config(), "tokenizer_name": name})

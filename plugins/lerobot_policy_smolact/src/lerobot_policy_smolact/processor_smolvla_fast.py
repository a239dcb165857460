"""What stands before and behind `smolvla_fast`: LeRobot's own steps for SmolVLA, and a tokenizer's that knows smolact's presets."""

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
    """LeRobot's step, for the name of a preset: its tokenizer is the one that smolact ships, wherever that is installed."""

    def __post_init__(self) -> None:
        folder = find_vlm(str(self.tokenizer_name)).tokenizer_folder()
        self.input_tokenizer = AutoTokenizer.from_pretrained(str(folder))


def make_smolvla_fast_pre_post_processors(
    config: SmolVLAFastConfig, dataset_stats: Mapping[str, Mapping[str, Any]] | None = None
) -> tuple[Any, Any]:
    """The preprocessor and the postprocessor."""
    name = config.vlm_model_name
    if name not in PRESETS:
        return make_smolvla_pre_post_processors(config, dataset_stats)
    folder = str(find_vlm(name).tokenizer_folder())
    before, after = make_smolvla_pre_post_processors(
        dataclasses.replace(config, vlm_model_name=folder), dataset_stats
    )
    before.steps = [_for_preset(step, name) for step in before.steps]
    return before, after


def _for_preset(step: Any, name: str) -> Any:
    """LeRobot's tokenizer step by the preset's name instead of the folder that it has on this machine; others as they are."""
    if not isinstance(step, TokenizerProcessorStep):
        return step
    return SmolactTokenizerStep(**{**step.get_config(), "tokenizer_name": name})

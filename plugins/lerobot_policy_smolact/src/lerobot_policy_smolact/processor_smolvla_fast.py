"""What stands before and behind `smolvla_fast`: LeRobot's own steps for SmolVLA."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from lerobot.policies.smolvla.processor_smolvla import make_smolvla_pre_post_processors

from lerobot_policy_smolact.configuration_smolvla_fast import SmolVLAFastConfig
from smolact.backbones.presets import PRESETS, find_vlm


def make_smolvla_fast_pre_post_processors(
    config: SmolVLAFastConfig, dataset_stats: Mapping[str, Mapping[str, Any]] | None = None
) -> tuple[Any, Any]:
    """The preprocessor and the postprocessor; a preset's tokenizer is the one that smolact ships."""
    name = config.vlm_model_name
    folder = str(find_vlm(name).tokenizer_folder()) if name in PRESETS else name
    return make_smolvla_pre_post_processors(dataclasses.replace(config, vlm_model_name=folder), dataset_stats)

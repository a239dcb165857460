"""SmolVLA's settings under the name `smolvla_fast`: LeRobot's, and those that smolact has besides."""

from __future__ import annotations

from dataclasses import dataclass

from lerobot.configs import PreTrainedConfig
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig as LeRobotSmolVLAConfig

from lerobot_policy_smolact.fields import ours, with_fields_of
from smolact.policies.smolvla.configuration_smolvla import SmolVLAConfig

KIND = "smolvla"
"""The policy's type in smolact."""


@PreTrainedConfig.register_subclass("smolvla_fast")
@dataclass
class SmolVLAFastConfig(with_fields_of(SmolVLAConfig, LeRobotSmolVLAConfig)):  # type: ignore[misc]
    """LeRobot's SmolVLAConfig with smolact's settings; `vlm_model_name` may be a preset, too.

    Raises:
        smolact.ConfigError: a combination that can't work, with the flag that settles it.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        ours(self, KIND)

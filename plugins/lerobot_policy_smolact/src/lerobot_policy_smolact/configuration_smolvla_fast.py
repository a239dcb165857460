"""SmolVLA's settings under the name `smolvla_fast`: LeRobot's, and smolact's additional ones."""

from __future__ import annotations

from dataclasses import dataclass

from lerobot.configs import PreTrainedConfig
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig as LeRobotSmolVLAConfig

from lerobot_policy_smolact.fields import smolact_config, with_fields_of
from smolact.policies.smolvla.configuration_smolvla import SmolVLAConfig

KIND = "smolvla"
"""The policy's type in smolact."""


@PreTrainedConfig.register_subclass("smolvla_fast")
@dataclass
class SmolVLAFastConfig(with_fields_of(SmolVLAConfig, LeRobotSmolVLAConfig)):  # type: ignore[misc]
    """LeRobot's SmolVLAConfig with smolact's settings; `vlm_model_name` may also be a preset.

    Raises:
        smolact.ConfigError: an invalid combination; the message names the flag that fixes it.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        smolact_config(self, KIND)

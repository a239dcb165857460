"""SmolAndFAST's settings in LeRobot's form."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from lerobot.configs import FeatureType, PreTrainedConfig
from lerobot.optim import AdamWConfig, CosineDecayWithWarmupSchedulerConfig

from lerobot_policy_smolact.fields import smolact_config, with_fields_of
from smolact.policies.smolandfast.configuration_smolandfast import SMOLANDFASTConfig as OurConfig

KIND = "smolandfast"


@PreTrainedConfig.register_subclass(KIND)
@dataclass
class SMOLANDFASTConfig(with_fields_of(OurConfig, PreTrainedConfig)):  # type: ignore[misc]
    """SmolAndFAST's settings, with smolact's names and defaults.

    Raises:
        smolact.ConfigError: an invalid combination; the message names the flag that fixes it.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        smolact_config(self, KIND)

    @property
    def observation_delta_indices(self) -> list[int]:
        """The current frame."""
        return smolact_config(self, KIND).observation_delta_indices  # type: ignore[attr-defined,no-any-return]

    @property
    def action_delta_indices(self) -> list[int]:
        """The chunk's frames."""
        return smolact_config(self, KIND).action_delta_indices  # type: ignore[attr-defined,no-any-return]

    @property
    def reward_delta_indices(self) -> None:
        """None: no reward is read."""
        return

    def get_optimizer_preset(self) -> AdamWConfig:
        """AdamW with the settings' values."""
        return AdamWConfig(**dataclasses.asdict(smolact_config(self, KIND).get_optimizer_preset()))  # type: ignore[attr-defined]

    def get_scheduler_preset(self) -> CosineDecayWithWarmupSchedulerConfig:
        """Warm-up and cosine decay with the settings' values."""
        preset = smolact_config(self, KIND).get_scheduler_preset()  # type: ignore[attr-defined]
        return CosineDecayWithWarmupSchedulerConfig(**dataclasses.asdict(preset))

    def validate_features(self) -> None:
        """Raise a `ValueError` unless there are a camera, a state and an action.

        Raises:
            ValueError: a feature is missing.
        """
        missing = [
            name
            for name, is_present in (
                ("a camera", bool(self.image_features)),
                ("observation.state", self.robot_state_feature is not None),
                ("action", self.action_feature is not None),
            )
            if not is_present
        ]
        if missing:
            names = [*(self.input_features or {}), *(self.output_features or {})]
            raise ValueError(f"SmolAndFAST needs {', '.join(missing)}; the features are {names or 'none'}.")

    @property
    def cameras(self) -> list[str]:
        """The names of the image features, in order."""
        return [
            name
            for name, feature in (self.input_features or {}).items()
            if feature.type is FeatureType.VISUAL
        ]

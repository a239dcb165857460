"""SmolAndFAST's settings in LeRobot's form."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from lerobot.configs import FeatureType, PreTrainedConfig
from lerobot.optim import AdamWConfig, CosineDecayWithWarmupSchedulerConfig

from lerobot_policy_smolact.fields import ours, with_fields_of
from smolact.policies.smolandfast.configuration_smolandfast import SMOLANDFASTConfig as OurConfig

KIND = "smolandfast"


@PreTrainedConfig.register_subclass(KIND)
@dataclass
class SMOLANDFASTConfig(with_fields_of(OurConfig, PreTrainedConfig)):  # type: ignore[misc]
    """SmolAndFAST's settings; names and defaults as in smolact.

    Raises:
        smolact.ConfigError: a combination that can't work, with the flag that settles it.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        ours(self, KIND)

    @property
    def observation_delta_indices(self) -> list[int]:
        """The present frame."""
        return ours(self, KIND).observation_delta_indices  # type: ignore[attr-defined,no-any-return]

    @property
    def action_delta_indices(self) -> list[int]:
        """The chunk's frames."""
        return ours(self, KIND).action_delta_indices  # type: ignore[attr-defined,no-any-return]

    @property
    def reward_delta_indices(self) -> None:
        """None: no reward is read."""
        return

    def get_optimizer_preset(self) -> AdamWConfig:
        """AdamW with these values."""
        return AdamWConfig(**dataclasses.asdict(ours(self, KIND).get_optimizer_preset()))  # type: ignore[attr-defined]

    def get_scheduler_preset(self) -> CosineDecayWithWarmupSchedulerConfig:
        """Warm-up and cosine with these values."""
        preset = ours(self, KIND).get_scheduler_preset()  # type: ignore[attr-defined]
        return CosineDecayWithWarmupSchedulerConfig(**dataclasses.asdict(preset))

    def validate_features(self) -> None:
        """Whether there is something to see, a state and an action.

        Raises:
            ValueError: something is missing.
        """
        missing = [
            name
            for name, there in (
                ("a camera", bool(self.image_features)),
                ("observation.state", self.robot_state_feature is not None),
                ("action", self.action_feature is not None),
            )
            if not there
        ]
        if missing:
            found = [*(self.input_features or {}), *(self.output_features or {})]
            raise ValueError(f"SmolAndFAST needs {', '.join(missing)}; the features are {found or 'none'}.")

    @property
    def cameras(self) -> list[str]:
        """The names of the images, in order."""
        return [
            name
            for name, feature in (self.input_features or {}).items()
            if feature.type is FeatureType.VISUAL
        ]

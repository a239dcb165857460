"""The settings that policies on a vision-language model share: the VLM's name, and presets of AdamW and of the learning rate."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, ClassVar

from smolact.policies.configuration import OptimizerPreset, PolicyConfig, SchedulerPreset

logger = logging.getLogger(__name__)


class VLMConfig(PolicyConfig):
    """The base of a configuration with a VLM and with these fields."""

    vlm_field: ClassVar[str] = "vlm_model_name"
    """The setting that names the VLM."""
    clip_field: ClassVar[str] = "optimizer_grad_clip_norm"
    """The setting that holds the largest gradient norm."""
    freezes: ClassVar[Mapping[str, bool]] = {}
    """Settings that freeze a part of the policy, and the value that freezes it."""
    reads_instructions: ClassVar[bool] = True

    optimizer_lr: float
    optimizer_betas: tuple[float, float]
    optimizer_eps: float
    optimizer_weight_decay: float
    scheduler_decay_lr: float
    scheduler_warmup_steps: int
    scheduler_decay_steps: int

    @property
    def vlm_name(self) -> str:
        """The VLM: a Hub id, a folder, or a preset."""
        return str(getattr(self, self.vlm_field))

    @classmethod
    def accepted(cls, values: Mapping[str, Any], source: str) -> dict[str, Any]:
        """Return the file's values; `n_obs_steps` is taken as 1 whatever its value, as in the reference."""
        values = super().accepted(values, source)
        if values.get("n_obs_steps", 1) != 1:
            logger.warning(
                "%s: n_obs_steps=%r is taken as 1: a '%s' policy sees one observation, in the reference too.",
                source,
                values.pop("n_obs_steps"),
                cls.type,
            )
        return values

    def get_optimizer_preset(self) -> OptimizerPreset:
        """Return AdamW with this configuration's values."""
        return OptimizerPreset(
            lr=self.optimizer_lr,
            betas=self.optimizer_betas,
            eps=self.optimizer_eps,
            weight_decay=self.optimizer_weight_decay,
            grad_clip_norm=float(getattr(self, self.clip_field)),
        )

    def get_scheduler_preset(self) -> SchedulerPreset:
        """Return warm-up and cosine decay with this configuration's values."""
        return SchedulerPreset(
            peak_lr=self.optimizer_lr,
            decay_lr=self.scheduler_decay_lr,
            num_warmup_steps=self.scheduler_warmup_steps,
            num_decay_steps=self.scheduler_decay_steps,
        )

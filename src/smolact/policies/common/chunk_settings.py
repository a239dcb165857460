"""Settings of policies that predict a chunk of actions from one observation."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, ClassVar

from smolact.errors import ConfigError
from smolact.policies.configuration import OptimizerPreset, PolicyConfig, SchedulerPreset

logger = logging.getLogger(__name__)


class ChunkSettings(PolicyConfig):
    """The base of a configuration with these fields: a sample's frames, and presets of AdamW and of warm-up and cosine decay.

    Raises:
        ConfigError: more than one observation, or more actions than a chunk has.
    """

    clip_field: ClassVar[str] = "optimizer_grad_clip_norm"
    """The setting that holds the largest gradient norm."""

    chunk_size: int
    n_action_steps: int
    optimizer_lr: float
    optimizer_betas: tuple[float, float]
    optimizer_eps: float
    optimizer_weight_decay: float
    scheduler_decay_lr: float
    scheduler_warmup_steps: int
    scheduler_decay_steps: int

    def __post_init__(self) -> None:
        """Check the settings that all chunk policies share."""
        if self.n_obs_steps != 1:
            raise ConfigError(
                f"n_obs_steps={self.n_obs_steps}: a '{self.type}' policy sees one observation. "
                "Leave --policy.n_obs_steps at 1."
            )
        super().__post_init__()
        if self.n_action_steps > self.chunk_size:
            raise ConfigError(
                f"n_action_steps={self.n_action_steps} is more than chunk_size={self.chunk_size}: a chunk can't supply "
                "more actions than it holds. Lower --policy.n_action_steps."
            )

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

    @property
    def observation_delta_indices(self) -> list[int]:
        """Observation frames of a sample, relative to the present one."""
        return [0]

    @property
    def action_delta_indices(self) -> list[int]:
        """Action frames of a sample, relative to the present one."""
        return list(range(self.chunk_size))

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

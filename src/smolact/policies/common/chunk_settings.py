"""What follows from the settings of a policy that predicts a chunk of actions from one observation."""

from __future__ import annotations

from typing import ClassVar

from smolact.policies.configuration import OptimizerPreset, SchedulerPreset


class ChunkSettings:
    """For a configuration with these fields: the frames of a sample, and the presets of AdamW and of warm-up and cosine."""

    clip_field: ClassVar[str] = "optimizer_grad_clip_norm"
    """The setting that names the largest norm of the gradient."""

    chunk_size: int
    optimizer_lr: float
    optimizer_betas: tuple[float, float]
    optimizer_eps: float
    optimizer_weight_decay: float
    scheduler_decay_lr: float
    scheduler_warmup_steps: int
    scheduler_decay_steps: int

    @property
    def observation_delta_indices(self) -> list[int]:
        """Frames of observation that a sample holds, relative to the present one."""
        return [0]

    @property
    def action_delta_indices(self) -> list[int]:
        """Frames of action that a sample holds, relative to the present one."""
        return list(range(self.chunk_size))

    def get_optimizer_preset(self) -> OptimizerPreset:
        """AdamW with this configuration's values."""
        return OptimizerPreset(
            lr=self.optimizer_lr,
            betas=self.optimizer_betas,
            eps=self.optimizer_eps,
            weight_decay=self.optimizer_weight_decay,
            grad_clip_norm=float(getattr(self, self.clip_field)),
        )

    def get_scheduler_preset(self) -> SchedulerPreset:
        """Warm-up and cosine with this configuration's values."""
        return SchedulerPreset(
            peak_lr=self.optimizer_lr,
            decay_lr=self.scheduler_decay_lr,
            num_warmup_steps=self.scheduler_warmup_steps,
            num_decay_steps=self.scheduler_decay_steps,
        )

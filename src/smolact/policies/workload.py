"""The sizes of a policy's parts and the cost of one sample, as its `flops_*.py` counts and `summary.py` shows them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PartSize:
    """The parameters of a part, and how many of them are trainable."""

    parameters: int
    trained: int

    def __add__(self, other: PartSize) -> PartSize:
        return PartSize(self.parameters + other.parameters, self.trained + other.trained)


@dataclass(frozen=True)
class Workload:
    """The cost of one sample.

    Attributes:
        assumed: the assumptions of the counts.
        vision, prefix, expert: FLOPs of the image tokens, of the prefix, and of one pass of the expert.
        denoising_steps: passes of the expert per chunk.
        prefix_once: whether the prefix is computed once per chunk, or once per pass.
        kept_values: values that a training step saves for its backward pass.
        answer: FLOPs of the loss after the prefix, if it is not one pass of the expert.
        passes: the name of a pass.
    """

    assumed: str
    vision: int
    prefix: int
    expert: int
    denoising_steps: int
    prefix_once: bool
    kept_values: int
    answer: int | None = None
    passes: str = "expert, one pass"

    @property
    def forward(self) -> int:
        """FLOPs of one sample's forward pass."""
        return self.vision + self.prefix + (self.expert if self.answer is None else self.answer)

    @property
    def replan(self) -> int:
        """FLOPs of a chunk, from images to actions."""
        prefix_passes = 1 if self.prefix_once else self.denoising_steps
        return self.vision + prefix_passes * self.prefix + self.denoising_steps * self.expert

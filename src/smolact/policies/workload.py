"""How large a policy's parts are, and what one sample costs: numbers that its `flops_*.py` counts and `summary.py` shows."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PartSize:
    """Parameters of a part, and how many of them train."""

    parameters: int
    trained: int

    def __add__(self, other: PartSize) -> PartSize:
        return PartSize(self.parameters + other.parameters, self.trained + other.trained)


@dataclass(frozen=True)
class Workload:
    """One sample's.

    Attributes:
        assumed: what the counts take for granted.
        vision, prefix, expert: FLOPs of the images' tokens, of reading the prefix, and of one pass of the expert.
        denoising_steps: passes of the expert that make a chunk.
        prefix_once: whether a chunk reads the prefix once, or once a pass.
        kept_values: numbers that a training step keeps for its backward pass.
        answer: FLOPs of the loss after the prefix, where it is not one pass of the expert.
        passes: what a pass is called.
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
        """FLOPs of one sample on its way to the loss."""
        return self.vision + self.prefix + (self.expert if self.answer is None else self.answer)

    @property
    def replan(self) -> int:
        """FLOPs of a chunk, from images to actions."""
        readings = 1 if self.prefix_once else self.denoising_steps
        return self.vision + readings * self.prefix + self.denoising_steps * self.expert

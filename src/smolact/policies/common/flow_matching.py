"""Flow matching: the training target, and the sampling of actions.

Time runs from noise at t = 1 to the action at t = 0, the other way round than in much of the diffusion literature:
x_t = t · noise + (1 − t) · action, and the velocity to learn is noise − action (Lipman et al. 2023; Black et al. 2024, π0).
"""

# B batch, C chunk, A action width.

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


def sample_time(
    batch_size: int, device: torch.device | str, generator: torch.Generator | None = None
) -> Tensor:
    """Training times (B,) from Beta(1.5, 1) × 0.999 + 0.001: more often near the noise, never exactly at the action.

    Beta(a, 1) has the distribution function x^a, so that a uniform draw to the power of 1/a has it too.
    """
    uniform = torch.rand(batch_size, device=device, generator=generator)
    return uniform ** (1 / 1.5) * 0.999 + 0.001


def sample_noise(
    shape: tuple[int, ...], device: torch.device | str, generator: torch.Generator | None = None
) -> Tensor:
    """Standard normal noise, float32."""
    return torch.randn(shape, device=device, generator=generator)


@dataclass(frozen=True)
class FlowDraws:
    """The random draws of one training sample, from its own generator: `noise` of `shape` and a `time` ()."""

    shape: tuple[int, int]

    def __call__(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw noise and time."""
        return {
            "noise": sample_noise(self.shape, "cpu", generator),
            "time": sample_time(1, "cpu", generator)[0],
        }


def interpolate(noise: Tensor, actions: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
    """The noisy actions x_t and the velocity to learn, both (B, C, A), at times (B,)."""
    t = time[:, None, None]
    return t * noise + (1 - t) * actions, noise - actions


Velocity = Callable[[Tensor, float], Tensor]
"""The velocity (B, C, A) at x (B, C, A) and a time, the same for the whole batch."""


def euler_step(velocity: Velocity, x: Tensor, time: float, length: float) -> Tensor:
    """Step with the velocity at the start: one evaluation, an error of the order of `length` over the whole path."""
    return x - velocity(x, time) * length


def midpoint_step(velocity: Velocity, x: Tensor, time: float, length: float) -> Tensor:
    """Step with the velocity at the midpoint: two evaluations, an error of the order of `length`²."""
    halfway = x - velocity(x, time) * (length / 2)
    return x - velocity(halfway, time - length / 2) * length


def heun_step(velocity: Velocity, x: Tensor, time: float, length: float) -> Tensor:
    """Step with the mean velocity of both ends (the trapezoid rule): two evaluations, an error of the order of `length`²."""
    here = velocity(x, time)
    # The last step ends at t = 0, but for rounding, which must not take it below.
    return x - (here + velocity(x - here * length, max(0.0, time - length))) * (length / 2)


SOLVERS: dict[str, Callable[[Velocity, Tensor, float, float], Tensor]] = {
    "euler": euler_step,
    "midpoint": midpoint_step,
    "heun": heun_step,
}
"""One step from `time` to `time - length` each. Euler is what SmolVLA's authors use."""


def integrate(velocity: Velocity, noise: Tensor, num_steps: int, solver: str = "euler") -> Tensor:
    """Follow `velocity` from noise (B, C, A) at t = 1 to actions at t = 0 in equal steps."""
    x = noise
    for step in range(num_steps):
        x = SOLVERS[solver](velocity, x, 1.0 - step / num_steps, 1.0 / num_steps)
    return x


def time_embedding(time: Tensor, width: int, min_period: float, max_period: float) -> Tensor:
    """Sines and cosines (B, width) of times (B,) at periods spread geometrically from `min_period` to `max_period`.

    The periods are made in float64, where the device has it: the shortest is 0.004, and float32 would blur its phase.
    """
    precise = torch.float32 if time.device.type == "mps" else torch.float64
    fraction = torch.linspace(0.0, 1.0, width // 2, dtype=precise, device=time.device)
    period = min_period * (max_period / min_period) ** fraction
    angle = time[:, None].to(precise) * (2 * math.pi / period)
    return torch.cat([angle.sin(), angle.cos()], dim=1).float()

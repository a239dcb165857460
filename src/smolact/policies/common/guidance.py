"""Real-time chunking: a new chunk is drawn so that it goes on from what is left of the old one.

    old chunk    ■ ■ ■ ■ a b c d e f g                ■ carried out before the policy is asked
    weights              1 1 1 ▓ ▒ ░ · 0 0 0 0        1: carried out while it answers; then less and less
    new chunk            a b c d'e'f'· · · · ·

While the new chunk is drawn, each step of the flow is bent towards the old actions (inpainting by guidance).

Time runs from noise at t = 1 to the action at t = 0 here: x_t = t · noise + (1 − t) · action, and v = noise − action. The network's
estimate of the chunk at x_t is x̂ = x_t − t · v(x_t, t). With the old actions y and weights w, the velocity becomes

    v′ = v − g(t) · Jᵀ (w ⊙ (y − x̂)),    J = ∂x̂/∂x_t,    g(t) = min(max_weight, ((1 − t)² + t²) / (t · (1 − t)))

since a step goes against v. The paper's time is τ = 1 − t and its velocity −v, with which these are its equations 2 to 4; its
weights are equation 5. Jᵀ takes a pass back through the denoiser. It says along which directions the network can move the
estimate at all: what a policy is sure of is not bent. LeRobot (0.6.1) computes the velocity before its input asks for a gradient,
so that its J is the identity; `jacobian=False` does the same, in less than half the time.

Source: Black, Galliker and Levine 2025, "Real-Time Execution of Action Chunking Flow Policies", arXiv 2506.07339; Pokle et al.
2023, arXiv 2310.04432 (ΠGDM for flows).
"""

# B batch, C chunk, A action width.

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from smolact.errors import ConfigError, FeatureError, did_you_mean
from smolact.policies.common.flow_matching import Velocity
from smolact_client.leftover import MAX_WEIGHT, SCHEDULES


@dataclass(frozen=True)
class Guidance:
    """What a chunk is to go on from.

    Attributes:
        actions: (B, C, A), those of the old chunk for the same ticks; any number where nothing is left.
        weights: (B, C, 1) or (B, C, A), from 0 to 1: how much each of them counts.
        max_weight: the bound of the guidance's weight.
        jacobian: differentiate through the denoiser.
    """

    actions: Tensor
    weights: Tensor
    max_weight: float = MAX_WEIGHT
    jacobian: bool = True

    def check(self, shape: tuple[int, int, int]) -> None:
        """Whether it is for chunks of this shape.

        Raises:
            FeatureError: it is not.
        """
        weights = tuple(self.weights.shape)
        if tuple(self.actions.shape) != shape or weights not in (shape, (*shape[:2], 1)):
            raise FeatureError(
                f"Guidance is for actions {tuple(self.actions.shape)} with weights {weights}; this batch has actions {shape}. "
                "Give as many rows and actions as the policy answers; where nothing is left of a chunk, weights are 0."
            )

    def replaced(self, actions: Tensor, weights: Tensor) -> Guidance:
        """The same with other actions and weights."""
        return replace(self, actions=actions, weights=weights)


def prefix_weights(delay: int, left: int, length: int, schedule: str = "exp") -> Tensor:
    """How much each action of the old chunk counts, (length,) float32 from 0 to 1.

    Args:
        delay: so many of the first will have been carried out when the new chunk is here: 1.
        left: so many are left; 0 behind them.
        length: of a chunk.
        schedule: in between: `exp` (the paper's) or `linear`, both falling; `ones`, `zeros`.

    Raises:
        ConfigError: there is no such schedule.
    """
    if schedule not in SCHEDULES:
        raise ConfigError(
            f"There is no schedule '{schedule}'; known: {', '.join(SCHEDULES)}.{did_you_mean(schedule, SCHEDULES)}"
        )
    left = max(0, min(left, length))
    delay = max(0, min(delay, left))
    between = torch.arange(left - delay, 0, -1) / (left - delay + 1)
    shapes = {
        "exp": between * torch.expm1(between) / math.expm1(1),
        "linear": between,
        "ones": torch.ones_like(between),
        "zeros": torch.zeros_like(between),
    }
    return torch.cat([torch.ones(delay), shapes[schedule], torch.zeros(length - left)])


def guidance_weight(time: float, max_weight: float) -> float:
    """g(t): how strongly a step at a time from 1 (noise) to 0 is bent."""
    spread = time * (1 - time)
    return max_weight if spread <= 0 else min(max_weight, ((1 - time) ** 2 + time**2) / spread)


def guided(velocity: Velocity, guidance: Guidance) -> Velocity:
    """`velocity`, bent so that the chunk goes on from `guidance`; see the formulas above. Wants to be called without gradients.

    `velocity` must be differentiable by its first argument, unless the guidance goes without the Jacobian.
    """

    def bent(x: Tensor, time: float) -> Tensor:
        with torch.set_grad_enabled(guidance.jacobian):
            start = x.detach().clone().requires_grad_(guidance.jacobian)  # a copy: x may be of inference mode
            v = velocity(start, time)
            clean = start - time * v
        pull = (guidance.actions - clean.detach()) * guidance.weights
        if guidance.jacobian:
            (pull,) = torch.autograd.grad(clean, start, pull)
        return v.detach() - guidance_weight(time, guidance.max_weight) * pull

    return bent

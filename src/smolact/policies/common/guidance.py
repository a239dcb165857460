"""Real-time chunking: a new chunk is drawn so that it continues the rest of the old one.

    old chunk    ■ ■ ■ ■ a b c d e f g                ■ executed before the inference
    weights              1 1 1 ▓ ▒ ░ · 0 0 0 0        1: executed during the inference; then less and less
    new chunk            a b c d'e'f'· · · · ·

While the new chunk is drawn, each step of the flow is bent towards the old actions (inpainting by guidance).

Time runs from noise at t = 1 to the action at t = 0 here: x_t = t · noise + (1 − t) · action, and v = noise − action. The network's
estimate of the chunk at x_t is x̂ = x_t − t · v(x_t, t). With the old actions y and weights w, the velocity becomes

    v′ = v − g(t) · Jᵀ (w ⊙ (y − x̂)),    J = ∂x̂/∂x_t,    g(t) = min(max_weight, ((1 − t)² + t²) / (t · (1 − t)))

since a step goes against v. The paper's time is τ = 1 − t and its velocity −v, with which these are its equations 2 to 4; its
weights are equation 5. Jᵀ takes a backward pass through the denoiser. It restricts the guidance to directions in which the network
can move the estimate: actions of which a policy is sure are not bent. LeRobot (0.6.1) computes the velocity before its input
requires a gradient, so that its J is the identity; `jacobian=False` does the same, in less than half the time.

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
    """The rest of an old chunk, which a new chunk is to continue.

    Attributes:
        actions: (B, C, A), those of the old chunk for the same ticks; any number where none is left.
        weights: (B, C, 1) or (B, C, A), from 0 to 1: the weight of each action.
        max_weight: the bound of the guidance's weight.
        jacobian: differentiate through the denoiser.
    """

    actions: Tensor
    weights: Tensor
    max_weight: float = MAX_WEIGHT
    jacobian: bool = True

    def check(self, shape: tuple[int, int, int]) -> None:
        """Raise a `FeatureError` unless the guidance is for chunks of this shape."""
        weights = tuple(self.weights.shape)
        if tuple(self.actions.shape) != shape or weights not in (shape, (*shape[:2], 1)):
            raise FeatureError(
                f"Guidance is for actions {tuple(self.actions.shape)} with weights {weights}; this batch has actions {shape}. "
                "Give as many rows and actions as the policy answers; where nothing is left of a chunk, weights are 0."
            )

    def replaced(self, actions: Tensor, weights: Tensor) -> Guidance:
        """Return the same guidance with other actions and weights."""
        return replace(self, actions=actions, weights=weights)


def prefix_weights(delay: int, left: int, length: int, schedule: str = "exp") -> Tensor:
    """Return the weight of each action of the old chunk, (length,) float32 from 0 to 1.

    Args:
        delay: the number of actions that are executed before the new chunk arrives; their weights are 1.
        left: the number of actions that are left; weights behind them are 0.
        schedule: the weights in between: `exp` (the paper's) or `linear`, both falling; `ones`, `zeros`.

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
    """Return g(t), the strength of the guidance at a time from 1 (noise) to 0."""
    spread = time * (1 - time)
    return max_weight if spread <= 0 else min(max_weight, ((1 - time) ** 2 + time**2) / spread)


def guided(velocity: Velocity, guidance: Guidance) -> Velocity:
    """Bend `velocity` so that the chunk continues `guidance`; see the formulas above. Call the result without gradients.

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

"""The plots of docs/learn/flow_matching.md, from our own functions and no network: python scripts/guide/flow_matching.py

The "actions" are points on a curve. For so small a world the velocity that a perfect network would learn can be written
down: the mean of (noise − action) over all pairs that could have led to x at time t, weighted by how likely each is.
"""

from __future__ import annotations

import matplotlib
import torch
from page import GREY, IMAGES, ORANGE, PURPLE, STYLE, TEAL

from smolact.policies.common.flow_matching import SOLVERS, integrate, interpolate, sample_time, time_embedding

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def world(points: int = 200) -> torch.Tensor:
    """Actions (points, 2): around an obstacle one can go left or right."""
    along = torch.linspace(0.15, 0.85, points // 2) * torch.pi
    arc = torch.stack([along.sin() * 1.6, along.cos() * 2.0], dim=1)
    return torch.cat([arc, arc * torch.tensor([-1.0, 1.0])])


def perfect_velocity(actions: torch.Tensor, width: float = 0.1):  # type: ignore[no-untyped-def]
    """The velocity field of flow matching for these actions, each a small cloud: what a network is trained towards."""

    def velocity(x: torch.Tensor, t: float) -> torch.Tensor:
        away = x - (1 - t) * actions[None]  # what noise and cloud have to explain, for each action
        spread = t**2 + ((1 - t) * width) ** 2
        weights = torch.softmax(-away.square().sum(-1) / (2 * spread), dim=1)[..., None]
        noise = away * t / spread
        action = actions[None] + away * (1 - t) * width**2 / spread
        return (weights * (noise - action)).sum(1)[:, None]

    return velocity


def paths(velocity, noise: torch.Tensor, steps: int):  # type: ignore[no-untyped-def]
    """Where each point is after every step."""
    seen = [noise]

    def watching(x: torch.Tensor, t: float) -> torch.Tensor:
        seen.append(x)
        return velocity(x, t)

    end = integrate(watching, noise, steps)
    return torch.stack([*seen[1:], end])[:, :, 0]


def plot_idea() -> None:
    """Training pairs; the field that they add up to; where few steps end."""
    actions, generator = world(), torch.Generator().manual_seed(0)
    velocity = perfect_velocity(actions)
    noise = torch.randn(60, 1, 2, generator=generator)
    figure, axes = plt.subplots(1, 3, figsize=(9.6, 3.3), sharex=True, sharey=True)
    chosen = actions[torch.randint(len(actions), (60,), generator=generator)][:, None]
    for time in torch.linspace(0, 1, 12):
        x, _ = interpolate(noise, chosen, time.expand(60))
        axes[0].scatter(*x[:, 0].T, s=2, color=GREY, alpha=0.25, linewidths=0)
    axes[0].plot(*torch.cat([noise, chosen], 1)[:14].permute(2, 1, 0), color=ORANGE, linewidth=0.8)
    axes[0].set_title("training: straight lines between\nany noise and any action")
    for path in paths(velocity, noise[:40], 100).permute(1, 2, 0):
        axes[1].plot(*path, color=TEAL, linewidth=0.8)
    axes[1].set_title("sampling: following the mean velocity\n(100 steps)")
    for path in paths(velocity, noise[:40], 3).permute(1, 2, 0):
        axes[2].plot(*path, color=PURPLE, linewidth=0.6, marker=".", markersize=2)
    axes[2].set_title("the same in 3 steps")
    for axis in axes:
        axis.scatter(*actions.T, s=3, color=ORANGE, zorder=3)
        axis.set_aspect("equal")
        axis.set(xlim=(-2.8, 2.8), ylim=(-2.8, 2.8), xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    axes[0].scatter(*noise[:14, 0].T, s=8, color=GREY, zorder=4)
    figure.savefig(IMAGES / "flow_idea.png")


def plot_steps() -> None:
    """How far from the exact end a few steps come, for each solver; by evaluations of the network."""
    actions = world()
    velocity, noise = (
        perfect_velocity(actions),
        torch.randn(400, 1, 2, generator=torch.Generator().manual_seed(1)),
    )
    exact = integrate(velocity, noise, 1000, "heun")
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.6, 3.0))
    for solver in SOLVERS:
        cost = 1 if solver == "euler" else 2
        counts = (1, 2, 3, 5, 10, 20, 40)
        errors = [float((integrate(velocity, noise, n, solver) - exact).norm(dim=-1).mean()) for n in counts]
        left.loglog([n * cost for n in counts], errors, marker="o", markersize=3, label=solver)
    left.set(xlabel="evaluations of the velocity", ylabel="mean distance from the exact end")
    left.legend()
    times = sample_time(200_000, "cpu", torch.Generator().manual_seed(0))
    right.hist(times.numpy(), bins=60, density=True, color=TEAL, alpha=0.8)
    right.set(
        xlabel="t (0: the action, 1: noise)",
        ylabel="density",
        title="times that training draws: Beta(1.5, 1)",
    )
    figure.savefig(IMAGES / "flow_steps.png")


def plot_time() -> None:
    """The embedding of the time."""
    times = torch.linspace(0.001, 1, 400)
    embedding = time_embedding(times, 96, 4e-3, 4.0)
    figure, axis = plt.subplots(figsize=(8.6, 2.2))
    axis.imshow(embedding.T, aspect="auto", extent=(0, 1, 96, 0), cmap="PuOr", interpolation="nearest")
    axis.set(
        xlabel="t",
        ylabel="component",
        title="time_embedding: sines above, cosines below; slow ones at the bottom of each",
    )
    figure.savefig(IMAGES / "flow_time.png")


if __name__ == "__main__":
    torch.set_num_threads(1)
    IMAGES.mkdir(parents=True, exist_ok=True)
    plt.rcParams.update(STYLE)
    plot_idea()
    plot_steps()
    plot_time()

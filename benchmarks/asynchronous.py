"""What thinking while moving is worth: the tabletop with a simulated clock, and answers that come late.

    python benchmarks/asynchronous.py --policy=CHECKPOINT [--episodes=100] [--output=RESULTS.json] [--plot=PICTURE.png]

The clock of the simulation stands still while the policy computes; its answer is handed over as many ticks later as the measured
inference took, and a delay of a network or a larger model more. A table says how many episodes succeed in each way of asking,
how long a task takes (an episode that fails counts with all of its time), and how smooth the motion is.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smolact.evaluation.metrics import wilson_interval
from smolact.policies.factory import load_policy
from smolact.recording.builtin import make_sim
from smolact.recording.chunk_driver import ChunkDriver, Inference
from smolact.recording.rollout import roll_out
from smolact.serving.local import LocalPolicy

DELAYS = (0.0, 0.1, 0.3, 1.0)
SECONDS = 12.0
WAYS = {
    "sync, all of a chunk": Inference(),
    "sync, 4 actions": Inference(executed=4),
    "async, latest": Inference(0.5, "latest"),
    "async, weighted": Inference(0.5, "weighted_average"),
    "ensemble": Inference(1.0, "ensemble"),
}


class Late:
    """A policy whose answers come late, in ticks of a simulated clock."""

    def __init__(self, policy: LocalPolicy, fps: float, delay: float) -> None:
        self.policy, self.fps, self.delay = policy, fps, delay
        self.chunk: NDArray[np.float32] | None = None
        self.left = 0
        self.measured: list[float] = []
        self.borders: list[int] = []

    def ask(self, observation: dict[str, Any], task: str) -> None:
        """Compute, and keep it until it is due."""
        began = time.perf_counter()
        self.chunk = self.policy.predict_action_chunk(observation, task)
        self.measured.append(time.perf_counter() - began)
        self.left = math.ceil((self.measured[-1] + self.delay) * self.fps)

    def answer(self) -> NDArray[np.float32] | None:
        """The chunk, when it is due."""
        if self.chunk is None or self.left > 0:
            return None
        found, self.chunk = self.chunk, None
        return found

    def forget(self) -> None:
        """An episode begins."""
        self.chunk = None
        self.policy.reset()

    def tick(self) -> None:
        """Time goes by."""
        self.left -= 1


class Watched(ChunkDriver):
    """Keeps what was sent."""

    def begin(self, task: str) -> None:
        """An episode begins."""
        super().begin(task)
        self.sent: list[NDArray[np.float32]] = []
        self.all = [*getattr(self, "all", []), self.sent]

    def get_action(self, observation: dict[str, Any]) -> NDArray[np.float32] | None:
        """See `ChunkDriver`."""
        action = super().get_action(observation)
        if action is not None:
            self.sent.append(action)
        return action


def measure(policy: LocalPolicy, way: Inference, delay: float, episodes: int) -> dict[str, Any]:
    """One cell of the table."""
    robot = make_sim("tabletop", seed=11, kwargs={"max_episode_steps": 10_000})
    fps = float(robot.env.fps)  # type: ignore[attr-defined]
    asks = Late(policy, fps, delay)
    driver = Watched(asks, way, clock=lambda: 0.0)
    robot.connect()
    reports = roll_out(
        robot, driver, fps=fps, duration=SECONDS, episodes=episodes, realtime=False, on_tick=asks.tick
    )
    robot.disconnect()
    done = sum(bool(report.success) for report in reports)
    seconds = sum(report.ticks for report in reports) / fps
    low, high = wilson_interval(done, episodes)
    jerks = [np.abs(np.diff(np.array(one), n=3, axis=0)).mean() for one in driver.all if len(one) > 3]
    return {
        "success": done / episodes,
        "interval": [round(low, 3), round(high, 3)],
        "seconds a task": round(seconds / episodes, 2),
        "tasks a minute": round(60 * done / seconds, 1),
        "held": round(sum(r.counts.held for r in reports) / sum(r.ticks for r in reports), 3),
        "jerk": round(float(np.mean(jerks)), 4),
        "inference, ms": round(1000 * float(np.median(asks.measured)), 1),
    }


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--policy", required=True)
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    policy = LocalPolicy(*load_policy(arguments.policy, engine=True))
    policy.warm_up()
    cells: dict[str, dict[str, Any]] = {}
    for delay in DELAYS:
        for name, way in WAYS.items():
            cells[f"{delay:g} s, {name}"] = one = measure(policy, way, delay, arguments.episodes)
            sys.stderr.write(f"{delay:g} s, {name}: {one}\n")
    found = {"episodes": arguments.episodes, "seconds at most": SECONDS, "cells": cells}
    if arguments.output:
        arguments.output.write_text(json.dumps(found, indent=2) + "\n")
    if arguments.plot:
        plot(cells, arguments.plot)
    sys.stdout.write(json.dumps(found, indent=2) + "\n")


def plot(cells: dict[str, dict[str, Any]], path: Path) -> None:
    """Success, and tasks a minute, against the delay."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4))
    for name in WAYS:
        mine = [cells[f"{delay:g} s, {name}"] for delay in DELAYS]
        places = np.arange(len(DELAYS))
        axes[0].plot(places, [100 * one["success"] for one in mine], "o-", label=name)
        axes[0].fill_between(
            places,
            [100 * one["interval"][0] for one in mine],
            [100 * one["interval"][1] for one in mine],
            alpha=0.12,
        )
        axes[1].plot(places, [one["tasks a minute"] for one in mine], "o-", label=name)
    for axis, title in zip(axes, ("success, % (95% interval)", "tasks a minute"), strict=True):
        axis.set_xticks(np.arange(len(DELAYS)), [f"{1000 * delay:g} ms" for delay in DELAYS])
        axis.set_title(title, fontsize=10)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.25)
    axes[0].set_xlabel("delay of an answer")
    axes[1].set_xlabel("delay of an answer")
    axes[1].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()

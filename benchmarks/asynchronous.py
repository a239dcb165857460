"""What thinking while moving is worth: the tabletop with a simulated clock, and answers that come late.

    python benchmarks/asynchronous.py --policy=CHECKPOINT [--episodes=100] [--output=RESULTS.json] [--plot=PICTURE.png]

The clock of the simulation stands still while the policy computes; its answer is handed over as many ticks later as the inference
took, and a delay of a network or a larger model more. Inference is one thread's own time, which what else the machine does makes
no longer. A table says how many episodes succeed in each way of asking, how long a task takes (an episode that fails counts with
all of its time), and how smooth the motion is: the mean third difference of the actions (jerk), and how far it is from the last
action of a chunk to the first of the next one, against the typical step within chunks (border).
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
import torch
from numpy.typing import NDArray

from smolact.evaluation.metrics import wilson_interval
from smolact.policies.factory import load_policy
from smolact.recording.builtin import make_sim
from smolact.runtime.controller import ChunkController
from smolact.runtime.inference import Inference, RealTime
from smolact.runtime.local import LocalPolicy
from smolact.runtime.rollout import roll_out
from smolact_client import Leftover

DELAYS = (0.0, 0.1, 0.3, 1.0)
SECONDS = 12.0
WAYS = {
    "sync, all of a chunk": Inference(),
    "sync, 4 actions": Inference(executed=4),
    "async, latest": Inference(0.5, "latest"),
    "async, weighted": Inference(0.5, "weighted_average"),
    "ensemble": Inference(1.0, "ensemble"),
    "rtc": Inference(1.0, real_time=RealTime()),
    "rtc, at half a chunk": Inference(0.5, real_time=RealTime()),
    "rtc, at half a chunk, no Jacobian": Inference(0.5, real_time=RealTime(jacobian=False)),
}


class Late:
    """A policy whose answers come late, in ticks of a simulated clock."""

    def __init__(self, policy: LocalPolicy, fps: float, delay: float) -> None:
        self.policy, self.fps, self.delay = policy, fps, delay
        self.chunk: NDArray[np.float32] | None = None
        self.left = 0
        self.measured: list[float] = []

    def ask(self, observation: dict[str, Any], task: str, leftover: Leftover | None = None) -> None:
        """Compute, and keep it until it is due."""
        began = time.thread_time()
        self.chunk = self.policy.predict_action_chunk(observation, task, leftover=leftover)
        self.measured.append(time.thread_time() - began)
        self.left = math.ceil((self.measured[-1] + self.delay) * self.fps)

    def answer(self) -> NDArray[np.float32] | None:
        """The chunk, when it is due."""
        if self.chunk is None or self.left > 0:
            return None
        found, self.chunk = self.chunk, None
        return found

    def reset(self) -> None:
        """An episode begins."""
        self.chunk = None
        self.policy.reset()

    def tick(self) -> None:
        """Time goes by."""
        self.left -= 1


class Watched(ChunkController):
    """Keeps what was sent, and the steps from one action to the next: within a chunk, and from one to another."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.all: list[list[NDArray[np.float32]]] = []
        self.steps: dict[bool, list[float]] = {True: [], False: []}

    def begin(self, task: str) -> None:
        """An episode begins."""
        super().begin(task)
        self.all.append([])

    def get_action(self, observation: dict[str, Any]) -> NDArray[np.float32] | None:
        """See `ChunkController`."""
        chunks, held, sent = self.counts.chunks, self.counts.held, self.all[-1]
        action = super().get_action(observation)
        if action is None:
            return None
        if sent and self.counts.held == held:
            self.steps[self.counts.chunks > chunks].append(float(np.linalg.norm(action - sent[-1])))
        sent.append(action)
        return action


def measure(policy: LocalPolicy, way: Inference, delay: float, episodes: int) -> dict[str, Any]:
    """One cell of the table."""
    # The gate lets everything pass: ways of asking are compared, and the environment brings actions within its range.
    anywhere = dict.fromkeys(("action_0", "action_1"), (-1e6, 1e6))
    robot = make_sim("tabletop", seed=11, kwargs={"max_episode_steps": 10_000}, max_step=0, limits=anywhere)
    fps = float(robot.env.fps)  # type: ignore[attr-defined]
    asks = Late(policy, fps, delay)
    driver = Watched(asks, way, robot.gate, clock=lambda: 0.0)
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
        "step": _mean(driver.steps[False]),
        "border": _mean(driver.steps[True]),
        "inference, ms": round(1000 * float(np.median(asks.measured)), 1),
    }


def _mean(values: list[float]) -> float | None:
    """None where each action is of another chunk, and there is no typical step."""
    return round(float(np.mean(values)), 4) if values else None


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--policy", required=True)
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--delays", nargs="+", type=float, default=list(DELAYS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    policy = LocalPolicy(*load_policy(arguments.policy, engine=True))
    policy.warm_up()
    cells = _known(arguments.output, arguments.episodes)
    found = {"episodes": arguments.episodes, "seconds at most": SECONDS, "cells": cells}
    for delay in arguments.delays:
        for name in arguments.ways:
            cells[f"{delay:g} s, {name}"] = one = measure(policy, WAYS[name], delay, arguments.episodes)
            sys.stderr.write(f"{delay:g} s, {name}: {one}\n")
            if arguments.output:
                arguments.output.write_text(json.dumps(found, indent=2) + "\n")
    if arguments.plot:
        plot(cells, arguments.plot)
    sys.stdout.write(json.dumps(found, indent=2) + "\n")


def _known(output: Path | None, episodes: int) -> dict[str, dict[str, Any]]:
    """What an earlier call measured, over as many episodes: this one goes on."""
    if output is None or not output.exists():
        return {}
    before = json.loads(output.read_text())
    if before["episodes"] != episodes:
        sys.exit(
            f"{output} is of {before['episodes']} episodes. Give --episodes={before['episodes']}, or another file."
        )
    cells: dict[str, dict[str, Any]] = before["cells"]
    return cells


def plot(cells: dict[str, dict[str, Any]], path: Path) -> None:
    """Success, tasks a minute and steps at borders, against the delay."""
    import matplotlib.pyplot as plt

    titles = {
        "success, % (95% interval)": lambda one: 100 * one["success"],
        "tasks a minute": lambda one: one["tasks a minute"],
        "step from chunk to chunk, in typical steps": lambda one: (
            one["border"] / one["step"] if one["step"] else math.nan
        ),
    }
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.6))
    places = np.arange(len(DELAYS))
    for name in WAYS:
        mine = [cells.get(f"{delay:g} s, {name}") for delay in DELAYS]
        if None in mine:
            continue
        for axis, value in zip(axes, titles.values(), strict=True):
            axis.plot(places, [value(one) for one in mine], "o-", label=name)
        axes[0].fill_between(
            places,
            [100 * one["interval"][0] for one in mine if one],
            [100 * one["interval"][1] for one in mine if one],
            alpha=0.08,
        )
    for axis, title in zip(axes, titles, strict=True):
        axis.set_xticks(places, [f"{1000 * delay:g} ms" for delay in DELAYS])
        axis.set_title(title, fontsize=10)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.25)
        axis.set_xlabel("delay of an answer")
    axes[2].axhline(1, color="grey", linewidth=1)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="center right", frameon=False, fontsize=8)
    figure.tight_layout(rect=(0, 0, 0.86, 1))
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()

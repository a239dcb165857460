"""Episodes in which a policy drives a robot, without a recording (`recording.recorder` records)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from smolact.errors import ConfigError
from smolact.robots.base import EpisodicRobot, Robot
from smolact.runtime.controller import ChunkController, Counts
from smolact.runtime.controls import ControlCommand, Controls
from smolact.runtime.loop import ControlLoop
from smolact.runtime.rate_limiter import Timing


@dataclass(frozen=True)
class RolloutReport:
    """The report of an episode.

    Attributes:
        episode, task: its number, and the instruction that it began with.
        ticks: ticks of the control loop.
        counts: ticks that moved and held, and chunks.
        timing: the measured timing; None without real time.
        success: whether the goal was reached, if the robot reports it.
    """

    episode: int
    task: str
    ticks: int
    counts: Counts
    timing: Timing | None
    success: bool | None

    def __str__(self) -> str:
        """Return a one-line summary."""
        success = {True: ", success", False: ", no success", None: ""}[self.success]
        rate = f", {self.timing.rate:.1f} a second" if self.timing and self.timing.rate else ""
        return f"episode {self.episode}: {self.ticks} ticks{rate}, {self.counts}{success}"


def roll_out(
    robot: Robot,
    controller: ChunkController,
    *,
    fps: float,
    duration: float,
    episodes: int = 1,
    first_episode: int = 0,
    task: str | None = None,
    realtime: bool = True,
    controls: Controls | None = None,
    on_tick: Callable[[], None] = lambda: None,
    on_episode: Callable[[RolloutReport], None] = lambda report: None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    interpolation: int = 1,
) -> list[RolloutReport]:
    """Let a policy drive a connected robot.

    Args:
        robot: connected. An `EpisodicRobot` resets its scene by itself, and may end an episode.
        controller: the policy's actions.
        fps: ticks a second.
        duration: the longest episode, in seconds of `fps` ticks.
        episodes, first_episode: the number of episodes, and the index of the first, which selects a simulation's scene.
        task: the instruction; None for the one of the robot's scene.
        realtime: hold the rate; False runs as fast as possible.
        controls: keys that end or pause an episode.
        on_tick: called after every tick.
        on_episode: called with the report of every episode.
        clock, sleep, interpolation: see `ControlLoop`.

    Raises:
        ConfigError: there is no task, or a number is out of its range.
        SmolactError: errors of robot, policy and gate.
    """
    if not fps > 0 or not duration > 0 or episodes < 1:
        raise ConfigError(f"fps={fps}, duration={duration}, episodes={episodes}: all must be above 0.")
    reports = []
    for number in range(first_episode, first_episode + episodes):
        loop = ControlLoop(robot, fps, realtime, controls, clock, sleep, interpolation)
        in_scene = robot.reset(number) if isinstance(robot, EpisodicRobot) else None
        instruction = task if task is not None else in_scene
        if instruction is None:
            raise ConfigError(
                f"The robot '{robot.name}' does not say what it is to do: give the instruction, --task='Pick up the cube.'"
            )
        controller.begin(instruction)
        command = loop.run_for(round(duration * fps), controller, lambda *_: on_tick())
        report = RolloutReport(
            number,
            instruction,
            loop.ticks,
            controller.counts,
            loop.rate_limiter.timing() if realtime else None,
            robot.is_success if isinstance(robot, EpisodicRobot) else None,
        )
        reports.append(report)
        on_episode(report)
        if command is ControlCommand.STOP:
            break
    return reports

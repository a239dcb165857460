"""The loop in which a policy drives a robot: look, ask or go on, move; on time. Nothing is recorded (`recorder.py` does)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from smolact.errors import ConfigError
from smolact.recording.chunk_driver import ChunkDriver, Counts
from smolact.recording.controls import ControlCommand, Controls
from smolact.recording.rate_limiter import RateLimiter, Timing
from smolact.robots.base import EpisodicRobot, Robot, gate_of, move


@dataclass(frozen=True)
class RolloutReport:
    """How an episode went.

    Attributes:
        episode, task: its number, and the instruction that it began with.
        ticks: of the control loop.
        counts: how many of them moved and held, and what came of the chunks.
        timing: how well the rate was held; None if nobody asked for one.
        success: whether the goal was reached, where the robot's world can tell.
    """

    episode: int
    task: str
    ticks: int
    counts: Counts
    timing: Timing | None
    success: bool | None

    def __str__(self) -> str:
        """One line."""
        said = {True: ", success", False: ", no success", None: ""}[self.success]
        rate = f", {self.timing.rate:.1f} a second" if self.timing and self.timing.rate else ""
        return f"episode {self.episode}: {self.ticks} ticks{rate}, {self.counts}{said}"


def roll_out(
    robot: Robot,
    driver: ChunkDriver,
    *,
    fps: float,
    duration: float,
    episodes: int = 1,
    first_episode: int = 0,
    task: str | None = None,
    realtime: bool = True,
    controls: Controls | None = None,
    on_tick: Callable[[], None] | None = None,
    on_episode: Callable[[RolloutReport], None] | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> list[RolloutReport]:
    """Let a policy drive a connected robot.

    Args:
        robot: connected. An `EpisodicRobot` sets its scene back by itself, and may end an episode.
        driver: says what it does.
        fps: ticks a second.
        duration: the longest episode, in seconds of `fps` ticks.
        episodes, first_episode: how many, and the number of the first, which decides a simulation's scene.
        task: the instruction; None for what the robot's scene asks for.
        realtime: hold the rate; False: as fast as it goes.
        controls: what a person says meanwhile.
        on_tick: called after every tick.
        on_episode: is told of every episode.
        clock, sleep: for the pace.

    Raises:
        ConfigError: there is no task, or a number is out of its range.
        SmolactError: what robot, policy and gate raise.
    """
    if not fps > 0 or not duration > 0 or episodes < 1:
        raise ConfigError(f"fps={fps}, duration={duration}, episodes={episodes}: all must be above 0.")
    gate_of(robot)
    controls = controls or Controls()
    reports = []
    for number in range(first_episode, first_episode + episodes):
        asked = robot.reset(number) if isinstance(robot, EpisodicRobot) else None
        instruction = task if task is not None else asked
        if instruction is None:
            raise ConfigError(
                f"The robot '{robot.name}' does not say what it is to do: give the instruction, --task='Pick up the cube.'"
            )
        driver.begin(instruction)
        pace = RateLimiter(fps, clock, sleep)
        ticks, command = 0, None
        while ticks < round(duration * fps) and command is None:
            if realtime:
                pace.tick()
            action = None if controls.paused else driver.get_action(robot.get_observation())
            if action is not None:
                move(robot, action)
            ticks += 1
            if on_tick is not None:
                on_tick()
            if isinstance(robot, EpisodicRobot) and robot.episode_is_over:
                break
            command = controls.take()
        success = robot.is_success if isinstance(robot, EpisodicRobot) else None
        report = RolloutReport(
            number, instruction, ticks, driver.counts, pace.timing() if realtime else None, success
        )
        reports.append(report)
        if on_episode is not None:
            on_episode(report)
        if command is ControlCommand.STOP:
            break
    return reports

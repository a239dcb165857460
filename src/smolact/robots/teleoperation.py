"""Teleoperation without recording: observe, read the teleoperator, move, at a fixed rate."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from smolact.errors import ConfigError
from smolact.robots.base import Robot, Teleoperator, gate_of, move


@dataclass(frozen=True)
class Ticks:
    """Number of ticks, number that started over half a tick late, and measured rate in Hz."""

    count: int
    late: int
    rate: float


def teleoperate(
    robot: Robot,
    teleoperator: Teleoperator,
    fps: float,
    seconds: float | None = None,
    on_tick: Callable[[Ticks], None] = lambda ticks: None,
    *,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> Ticks:
    """Drive a robot with a teleoperator until the time is over or Ctrl-C.

    Args:
        robot: connected.
        teleoperator: connected to it.
        fps: ticks per second.
        seconds: duration; None for no end.
        on_tick: called after every tick.
        clock: monotonic clock, in seconds.
        sleep: sleeps that many seconds.

    Raises:
        ConfigError: a rate or time that is not above 0.
        RobotError: a device does not answer, or the robot has no gate.
    """
    if not fps > 0 or (seconds is not None and not seconds > 0):
        raise ConfigError(
            f"The rate and the time must be above 0, found {fps} ticks a second for {seconds} s."
        )
    gate = gate_of(robot)
    begin = due = clock()
    ticks = Ticks(0, 0, 0.0)
    while seconds is None or clock() - begin < seconds:
        late = clock() - due > 0.5 / fps
        if late:
            due = clock()  # missed ticks are not made up for: only the present position counts
        observation = robot.get_observation()
        move(robot, gate.clamp(teleoperator.get_action(observation)))
        due += 1 / fps
        sleep(max(0.0, due - clock()))
        ticks = Ticks(ticks.count + 1, ticks.late + late, (ticks.count + 1) / max(clock() - begin, 1e-9))
        on_tick(ticks)
    return ticks

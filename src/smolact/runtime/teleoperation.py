"""Teleoperation without a recording."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from smolact.errors import ConfigError
from smolact.robots.base import Robot, Teleoperator
from smolact.runtime.controls import Controls
from smolact.runtime.loop import ControlLoop, TeleoperatorSource


@dataclass(frozen=True)
class Ticks:
    """The number of ticks, the number that began late by over half a tick, and the measured rate in Hz."""

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
    controls: Controls | None = None,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> Ticks:
    """Drive a connected robot by a connected teleoperator until the time is over or Ctrl-C.

    Args:
        robot: connected.
        teleoperator: connected to it.
        fps: ticks a second.
        seconds: the duration; None for no end.
        on_tick: called after every tick.
        controls: keys that pause or end it.
        clock, sleep: see `ControlLoop`.

    Raises:
        ConfigError: a rate or time that is not above 0.
        RobotError: the robot or the teleoperator does not respond, or the robot has no gate.
    """
    if not fps > 0 or (seconds is not None and not seconds > 0):
        raise ConfigError(
            f"The rate and the time must be above 0, found {fps} ticks a second for {seconds} s."
        )
    loop = ControlLoop(robot, fps, controls=controls, clock=clock, sleep=sleep)
    limiter = loop.rate_limiter
    max_ticks = math.inf if seconds is None else seconds * fps

    def ticks() -> Ticks:
        return Ticks(loop.ticks, limiter.late, limiter.rate or 0.0)

    source = TeleoperatorSource(teleoperator, robot.gate)
    loop.run(
        source,
        lambda: loop.ticks + limiter.missed >= max_ticks,
        lambda *_: on_tick(ticks()),
        ends_with_episode=False,
        checks_cameras=False,
    )
    return ticks()

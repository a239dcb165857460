"""A robot and a teleoperator of one's own, as a distribution that smolact finds by its entry points.

The robot is a carriage on a rail, whose motor is played by a number: put the driver of a real one in its place.
The parameters of `__init__` are its settings: `--robot.type=slider --robot.port=/dev/ttyUSB0 --robot.speed=20`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smolact.robots.base import Observation, Robot, RobotFeatures
from smolact.robots.safety import Gate, make_limits
from smolact.types import STATE

NAMES = ("carriage.pos",)


class Slider:
    """A carriage at 0 to 100 mm.

    Args:
        port: where its motor is plugged in.
        speed: the largest step of a tick, in mm.
    """

    name = "slider"

    def __init__(self, port: str = "none", speed: float = 10.0) -> None:
        self.port = port
        self.features = RobotFeatures(NAMES, {STATE: NAMES}, limits=((0.0, 100.0),), units={STATE: ("mm",)})
        self.gate = Gate(make_limits(NAMES, {NAMES[0]: (0.0, 100.0)}, {NAMES[0]: speed}))
        self.position = np.full(1, 50, np.float32)

    def connect(self) -> None:
        """Open the port here; raise a `RobotError` if nothing answers."""

    def get_observation(self) -> Observation:
        """Where the carriage is."""
        return {STATE: self.position.copy()}

    def send_action(self, action: NDArray[Any]) -> NDArray[Any]:
        """Move there. The gate has checked the action."""
        self.position = action.astype(np.float32)
        return self.position

    def disconnect(self) -> None:
        """Stop the motor here; it may be called more than once."""


class Sweep:
    """Moves the carriage to and fro. It stands for a hand that shows a motion."""

    name = "sweep"

    def __init__(self, period: int = 40) -> None:
        self.period, self.tick = period, 0

    def connect(self, robot: Robot) -> None:
        """Begin in the middle."""
        self.tick = 0

    def get_action(self, observation: Observation) -> NDArray[Any]:
        """The next point of a sine."""
        self.tick += 1
        return np.array([50 + 40 * math.sin(2 * math.pi * self.tick / self.period)], np.float32)

    def disconnect(self) -> None:
        """Nothing to release."""

"""A robot without software reset, a clock that costs nothing, and a driver: real frames, no hardware, no waiting."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from smolact.errors import RobotError
from smolact.robots.base import Observation, RobotFeatures
from smolact.robots.safety import Gate, make_limits

CAMERA = "observation.images.top"


class Clock:
    """Time passes only when somebody sleeps or `now` is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Arm:
    """Two joints and a camera; it can't go beyond 1, and fails at one of its looks if it is told to."""

    name = "arm"

    def __init__(self, fails_at: int | None = None) -> None:
        self.features = RobotFeatures(
            ("pan.pos", "grip.pos"),
            {"observation.state": ("pan.pos", "grip.pos")},
            {CAMERA: (32, 48)},
            ((-1.0, 1.0), (-1.0, 1.0)),
        )
        self.gate = Gate(make_limits(self.features.action, {}, {}))
        self.looks = 0
        self.fails_at = fails_at
        self.sent: list[NDArray[Any]] = []
        self._state = np.zeros(2, np.float32)
        self._picture = np.zeros((32, 48, 3), np.uint8)  # one buffer for all frames, as drivers have

    def connect(self) -> None: ...

    def disconnect(self) -> None: ...

    def get_observation(self) -> Observation:
        self.looks += 1
        if self.looks == self.fails_at:
            raise RobotError("The arm does not answer.")
        self._picture[:] = 4 * self.looks % 256
        return {"observation.state": self._state, CAMERA: self._picture, "observation.extra": np.zeros(1)}

    def send_action(self, action: NDArray[Any]) -> NDArray[Any]:
        self._state = np.clip(action, -1, 1).astype(np.float32)
        self.sent.append(self._state)
        return self._state


class Counting:
    """Says 0.1, 0.2, … for both joints; goes on from where it was."""

    drives_resets = True

    def __init__(self) -> None:
        self.count = 0
        self.begun: list[str] = []

    def begin(self, task: str) -> None:
        self.begun.append(task)

    def get_action(self, observation: Observation) -> NDArray[Any]:
        self.count += 1
        return np.full(2, self.count / 10, np.float32)

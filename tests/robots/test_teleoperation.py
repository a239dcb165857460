"""Driving by hand: every tick looks, reads and moves, on time; a late tick is told and not made up for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from smolact.errors import ConfigError
from smolact.robots.base import RobotFeatures
from smolact.robots.safety import Gate, make_limits
from smolact.runtime.teleoperation import Ticks, teleoperate


class Clock:
    """Time that passes when somebody waits or works."""

    now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Arm:
    name, features = "arm", RobotFeatures(action=("a",))
    gate = Gate(make_limits(("a",), {}, {}))

    def __init__(self, clock: Clock, work: list[float]) -> None:
        self.clock, self.work, self.sent = clock, work, []

    def connect(self) -> None: ...

    def get_observation(self) -> dict[str, Any]:
        self.clock.now += self.work.pop(0) if self.work else 0.0
        return {"observation.state": np.array([self.clock.now], np.float32)}

    def send_action(self, action: Any) -> Any:
        self.sent.append((self.clock.now, float(action[0])))
        return action

    def disconnect(self) -> None: ...


class Hand:
    name = "hand"

    def connect(self, robot: Any) -> None: ...

    def get_action(self, observation: Any) -> Any:
        return observation["observation.state"]

    def disconnect(self) -> None: ...


def drive(work: list[float], **settings: Any) -> tuple[Ticks, Arm, list[Ticks]]:
    clock, told = Clock(), []
    arm = Arm(clock, work)
    ticks = teleoperate(arm, Hand(), on_tick=told.append, clock=clock, sleep=clock.sleep, **settings)
    return ticks, arm, told


def test_ticks_come_at_their_rate() -> None:
    ticks, arm, told = drive([0.05] * 10, fps=10, seconds=0.95)
    assert (ticks.count, ticks.late) == (10, 0) and ticks.rate == pytest.approx(10)
    np.testing.assert_allclose([when for when, _ in arm.sent], np.arange(10) * 0.1 + 0.05)
    assert [value for _, value in arm.sent] == pytest.approx([when for when, _ in arm.sent])
    assert told[-1] == ticks and len(told) == 10


def test_a_late_tick_is_counted_and_the_rhythm_begins_anew() -> None:
    ticks, arm, _ = drive([0.0, 0.37], fps=10, seconds=0.85)
    assert ticks.late == 1
    np.testing.assert_allclose([when for when, _ in arm.sent], [0, 0.47, 0.47, 0.5, 0.6, 0.7, 0.8])


@pytest.mark.parametrize("settings", [{"fps": 0}, {"fps": float("nan")}, {"fps": 10, "seconds": 0}])
def test_a_rate_or_time_of_nothing_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="above 0"):
        drive([], **settings)

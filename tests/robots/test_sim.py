"""The simulated robot, and the teleoperators that move a target."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from smolact.errors import FeatureError, MissingDependencyError, RobotError
from smolact.recording.builtin import make_sim
from smolact.robots.base import EpisodicRobot, Teleoperator
from smolact.robots.jog import GamepadTeleoperator, KeyboardTeleoperator
from smolact.robots.keys import Keys, split_keys
from smolact.types import STATE


def test_a_simulation_is_a_robot_whose_scenes_follow_from_seed_and_episode() -> None:
    robot, twin = make_sim(seed=1), make_sim(seed=1)
    assert isinstance(robot, EpisodicRobot)
    with pytest.raises(RobotError, match="not connected"):
        robot.get_observation()
    assert robot.reset(4) == twin.reset(4)
    np.testing.assert_array_equal(robot.get_observation()[STATE], twin.get_observation()[STATE])
    robot.reset(5)
    assert (robot.get_observation()[STATE] != twin.get_observation()[STATE]).any()
    assert robot.features.action == ("action_0", "action_1")
    assert robot.features.cameras == {"observation.image": (64, 64)}
    assert robot.send_action(np.array([2.0, 0.5])).tolist() == [1.0, 0.5]
    for wrong in (np.zeros(3), np.array([np.nan, 0])):
        with pytest.raises(FeatureError, match="takes 2 finite numbers"):
            robot.send_action(wrong)
    robot.disconnect()
    robot.disconnect()
    with pytest.raises(RobotError, match="closed"):
        robot.connect()


def test_arrows_move_the_target_while_they_are_held() -> None:
    now = [0.0]
    keyboard = KeyboardTeleoperator(clock=lambda: now[0])
    assert isinstance(keyboard, Teleoperator)
    robot = make_sim()
    robot.connect()
    keyboard.connect(robot)
    seen = {**robot.get_observation(), STATE: np.array([0.5, 0.5], np.float32)}
    assert keyboard.get_action(seen).tolist() == [0.5, 0.5]
    keyboard.press("right")
    now[0] = 0.1
    assert keyboard.get_action(seen) == pytest.approx([0.53, 0.5])
    now[0] = 0.3  # let go
    assert keyboard.get_action(seen) == pytest.approx([0.53, 0.5])
    keyboard.press("2")
    keyboard.press("up")
    now[0] = 0.4
    assert keyboard.get_action(seen) == pytest.approx([0.53, 0.53])
    keyboard.begin()
    now[0] = 9.0
    assert keyboard.get_action(seen).tolist() == [0.5, 0.5]


def test_without_pygame_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    robot = make_sim()
    monkeypatch.setitem(sys.modules, "pygame", None)
    with pytest.raises(MissingDependencyError, match=r"smolact\[gamepad\]"):
        GamepadTeleoperator().connect(robot)


def test_a_gamepad_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = SimpleNamespace(init=lambda: None, get_count=lambda: 0)
    pygame = SimpleNamespace(init=lambda: None, quit=lambda: None, joystick=nothing)
    monkeypatch.setitem(sys.modules, "pygame", pygame)
    with pytest.raises(RobotError, match=r"no gamepad 0; connected: none.*--teleop\.index"):
        GamepadTeleoperator().connect(make_sim())


def test_bytes_of_a_terminal_are_keys() -> None:
    assert split_keys(b"\x1b[C\x1bODq \r\x7f\x1b") == [
        "right",
        "left",
        "q",
        "space",
        "enter",
        "backspace",
        "escape",
    ]
    assert split_keys(b"\x1b[5~\xc3\xa4") == []


def test_without_a_terminal_there_are_no_keys() -> None:
    with Keys() as keys:
        assert not keys.is_listening

"""The simulated robot, and the teleoperators that move a target."""

from __future__ import annotations

import itertools
import sys
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest

from smolact.errors import ConfigError, MissingDependencyError, RobotError, UnsafeActionError
from smolact.recording.builtin import ExpertTeleoperator, make_sim
from smolact.recording.recorder import Recorder
from smolact.recording.replay import replay
from smolact.robots.base import EpisodicRobot, Teleoperator, move
from smolact.robots.factory import make_robot
from smolact.robots.incremental_teleop import GamepadTeleoperator, KeyboardTeleoperator
from smolact.robots.keys import Keys, split_keys
from smolact.robots.sim import SimRobot
from smolact.runtime.loop import TeleoperatorSource
from smolact.runtime.rollout import roll_out
from smolact.runtime.teleoperation import teleoperate
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
    robot.gate.position = np.array([0.9, 0.5], np.float32)
    assert robot.send_action(np.array([1.2, 0.5])).tolist() == [1.0, 0.5]  # over by a little
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


# The gate before a simulation.


@pytest.mark.parametrize(
    ("action", "words"),
    [
        ([1e30, 0.5], r"'action_0' to 1e\+30: outside its limits \[0, 1\]"),
        ([0.5, 1.26], r"'action_1' to 1.26: outside"),
        ([0.5, float("nan")], "not finite"),
        ([0.5, 0.5, 0.5], r"\(ticks, 2\) numbers"),
        ([0.9, 0.5], "more than its largest step of 0.3"),
    ],
)
def test_a_simulation_refuses_what_a_real_robot_refuses(action: list[float], words: str) -> None:
    robot = make_sim()
    robot.connect()
    robot.gate.position = np.full(2, 0.5, np.float32)
    before = robot.get_observation()[STATE]
    for send in (robot.send_action, lambda values: move(robot, values)):
        with pytest.raises(UnsafeActionError, match=words):
            send(np.array(action))
    np.testing.assert_array_equal(robot.get_observation()[STATE], before)


def test_a_leap_is_counted_from_where_the_pusher_stands_when_an_episode_begins() -> None:
    robot = make_sim()
    for episode in range(3):
        robot.reset(episode)
        np.testing.assert_array_equal(robot.gate.position, robot.get_observation()[STATE])
    robot.gate.check_chunk([robot.gate.position + 0.02] * 3)


def test_the_limits_of_a_simulation_can_be_set_as_those_of_a_robot() -> None:
    robot = make_sim(max_step=0, limits={"action_1": (-2.0, 2.0)}, max_action_age=1.0)
    robot.connect()
    robot.gate.position = np.zeros(2, np.float32)
    robot.gate.check_chunk([[1.0, 2.0]])
    assert robot.features.limits == ((0.0, 1.0), (-2.0, 2.0))
    with pytest.raises(UnsafeActionError, match=r"2.00 s old"):
        robot.gate.check_chunk([[0.1, 0.1]], age=2.0)
    with pytest.raises(ConfigError, match="no 'action_2'"):
        make_sim(limits={"action_2": (0.0, 1.0)})
    assert make_sim(max_step={"action_0": 0.1}).gate.limits.step.tolist() == pytest.approx([0.1, 0.3])


def test_where_actions_are_changes_nothing_is_a_leap() -> None:
    space = gymnasium.spaces.Box(-1.0, 1.0, (3,), np.float32)
    for state, step in ((space, 0.6), (gymnasium.spaces.Box(-2.0, 2.0, (3,), np.float32), np.inf)):
        features = {STATE: SimpleNamespace(shape=(3,)), "action": SimpleNamespace(shape=(3,))}
        env = SimpleNamespace(features=features, action_space=space, observation_space={STATE: state})
        assert SimRobot(env, "own").gate.limits.step.tolist() == pytest.approx([step] * 3)  # type: ignore[arg-type]


def test_no_robot_is_made_or_moved_without_a_gate() -> None:
    class Bare:
        name = "bare"

    for use in (
        lambda: make_robot("bare", {"bare": Bare}),
        lambda: move(Bare(), np.zeros(2)),  # type: ignore[arg-type]
        lambda: replay(Bare(), np.zeros((1, 2), np.float32), 10),  # type: ignore[arg-type]
        lambda: teleoperate(Bare(), Bare(), 10),  # type: ignore[arg-type]
        lambda: roll_out(Bare(), None, fps=10, duration=1, task="go"),  # type: ignore[arg-type]
        lambda: Recorder(Bare(), None, None, None),  # type: ignore[arg-type]
    ):
        with pytest.raises(RobotError, match=r"'bare' has no gate.*make_limits"):
            use()


def test_an_episode_that_does_not_fit_whole_is_not_replayed() -> None:
    robot = make_sim()
    start = np.array(robot.reset(0) and robot.gate.position)
    actions = np.stack([start, start, start + 0.5])
    with pytest.raises(UnsafeActionError, match="Tick 2 of 3"):
        replay(robot, actions, 1000, 0)
    np.testing.assert_array_equal(robot.get_observation()[STATE], start)


def test_a_hand_is_held_to_the_gate_whatever_teleoperator_it_holds() -> None:
    class Far:
        def get_action(self, observation: object) -> np.ndarray:
            return np.array([3.0, 0.5], np.float32)

    robot = make_sim()
    robot.connect()
    robot.gate.position = np.full(2, 0.5, np.float32)
    driver = TeleoperatorSource(Far(), robot.gate)  # type: ignore[arg-type]
    for expected in (0.8, 1.0, 1.0):
        assert move(robot, driver.get_action({}))[0] == pytest.approx(expected)
    robot.gate.position = np.full(2, 0.5, np.float32)
    teleoperate(robot, Far(), 1000, 0.002)  # type: ignore[arg-type]
    assert robot.gate.position[0] >= 0.8


def test_teleoperation_goes_on_when_an_episode_is_over() -> None:
    robot = make_sim(kwargs={"max_episode_steps": 3})
    robot.connect()
    hand = ExpertTeleoperator()
    hand.connect(robot)
    times = itertools.count()
    ticks = teleoperate(robot, hand, 1000, 0.02, clock=lambda: next(times) / 4000, sleep=lambda _: None)
    assert ticks.count >= 10
    assert robot.episode_is_over
    robot.disconnect()

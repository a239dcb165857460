"""The native arms beside LeRobot's own drivers, on simulated motors (`so101_session.py` recorded LeRobot 0.6.1)."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

if sys.platform == "win32":
    pytest.skip("simulated motors need a pseudo-terminal", allow_module_level=True)

from smolact.errors import ConfigError, RobotError, UnsafeActionError
from smolact.registry import ROBOTS, TELEOPERATORS
from smolact.robots.base import EpisodicRobot, Robot, Teleoperator
from smolact.robots.factory import make_robot, make_teleoperator
from smolact.robots.safety import Gate, make_limits
from smolact.robots.so_arm import setup
from smolact.robots.so_arm.arm import SOArm
from smolact.robots.so_arm.calibration import JointUnit, MotorCalibration, calibration_file
from smolact.robots.so_arm.follower import SOFollower
from smolact.robots.so_arm.leader import SOLeader
from smolact.runtime.corrections import KEY, CorrectedSource, Phase
from smolact.types import STATE
from tests.robots.so101_session import (
    CALIBRATION,
    JOINTS,
    arm,
    conversions,
    middle,
    move_by_hand,
    run_follower,
    run_leader,
    writes,
)

LEROBOT = json.loads(Path(__file__).with_name("so101_lerobot.json").read_text())
GOAL_IS_PRESENT = "ff ff fe 16 83 2a 02"
"""The one request that LeRobot does not send: the goal, before the torque is switched on."""


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """No reply is lost here, so a busy machine may take its time."""
    monkeypatch.setattr("smolact.robots.feetech.bus.TIMEOUT_S", 5.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "black.json").write_text(json.dumps(CALIBRATION, indent=4))
    return tmp_path


def follower(port: str, folder: Path, **settings: Any) -> SOFollower:
    robot = make_robot(
        "so101_follower", ROBOTS, port=port, id="black", calibration_dir=folder, **{"max_step": 0, **settings}
    )
    assert isinstance(robot, SOFollower)
    return robot


def leader(port: str, folder: Path, **settings: Any) -> SOLeader:
    made = make_teleoperator(
        "so101_leader", TELEOPERATORS, port=port, id="black", calibration_dir=folder, **settings
    )
    assert isinstance(made, SOLeader)
    return made


class Session:
    """Our follower behind the methods that a session calls."""

    def __init__(self, robot: SOFollower) -> None:
        self.robot = robot

    def connect(self) -> None:
        self.robot.connect()

    def observe(self) -> dict[str, float]:
        return self.robot.arms[""].positions()

    def act(self, goal: dict[str, float]) -> dict[str, float]:
        sent = self.robot.send_action(np.array([goal[name] for name in JOINTS], np.float32))
        return dict(zip(JOINTS, sent.tolist(), strict=True))

    def disconnect(self) -> None:
        self.robot.disconnect()


class LeaderSession(Session):
    """Our leader, without a robot to drive."""

    def __init__(self, device: SOLeader, robot: SOFollower) -> None:
        self.leader, self.robot = device, robot

    def connect(self) -> None:
        self.leader.connect(self.robot)

    def observe(self) -> dict[str, float]:
        return self.leader.arms[""].positions()

    def disconnect(self) -> None:
        self.leader.disconnect()


def ours(requests: list[str]) -> list[str]:
    return [request for request in writes(requests) if not request.startswith(GOAL_IS_PRESENT)]


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("degrees", {}),
        ("percent", {"use_degrees": False}),
        ("max_relative_target", {"max_relative_target": 4.0}),
    ],
)
def test_a_follower_writes_what_lerobots_writes_and_sees_what_it_sees(
    name: str, settings: dict[str, Any], folder: Path
) -> None:
    theirs = LEROBOT[name]
    with arm() as bus:
        found = run_follower(lambda port: Session(follower(port, folder, **settings)), bus)
    assert ours(found["connect"]) == writes(theirs["connect"])
    assert [memory[:84] + memory[88:] for memory in found["registers"]] == [
        memory[:84] + memory[88:] for memory in theirs["registers"]
    ]  # all but the goal, which is the position
    assert found["goals"] == theirs["goals"]
    assert sorted(set(found["moves"])) == sorted(set(theirs["moves"]))
    assert writes(found["moves"]) == writes(theirs["moves"])
    assert found["seen"] == theirs["seen"]
    for mine, other in zip(found["sent"], theirs["sent"], strict=True):
        assert mine == pytest.approx(other, abs=1e-5)
    assert found["torque"] == theirs["torque"] == [0] * 6


def test_a_leader_writes_what_lerobots_writes_and_sees_what_it_sees(folder: Path) -> None:
    theirs = LEROBOT["leader"]
    with arm() as bus:
        robot = follower(bus.port, folder)
        found = run_leader(lambda port: LeaderSession(leader(port, folder), robot), bus)
    assert ours(found["connect"]) == writes(theirs["connect"])
    assert found["registers"] == theirs["registers"]
    assert set(found["looks"]) == set(theirs["looks"])
    assert found["seen"] == theirs["seen"]


def test_the_interfaces_are_those_of_every_robot(folder: Path) -> None:
    robot = follower("nowhere", folder)
    assert isinstance(robot, Robot) and not isinstance(robot, EpisodicRobot)
    assert isinstance(leader("nowhere", folder), Teleoperator)
    assert robot.name == "so_follower"
    names = tuple(f"{joint}.pos" for joint in JOINTS)
    assert robot.features.action == robot.features.vectors[STATE] == names
    assert robot.features.units["action"] == ("degrees",) * 5 + ("range_0_100",)
    half = (3393 - 711) / 2 * 360 / 4095
    assert robot.features.limits is not None
    assert robot.features.limits[0] == pytest.approx((-half, half)) and robot.features.limits[5] == (0, 100)


class Hand:
    """A guide whose person turns the motors when asked."""

    def __init__(self, bus: Any, answers: Iterator[str]) -> None:
        self.bus, self.answers, self.said = bus, answers, list[str]()

    def ask(self, question: str) -> str:
        self.said.append(question)
        for motor in self.bus.motors:
            motor.turn(middle(motor))
        return next(self.answers)

    def say(self, line: str) -> None:
        self.said.append(line)

    def watch(self, title: str, columns: Any, rows: Callable[[], Any]) -> None:
        done = threading.Event()
        move_by_hand(self.bus, done.set)
        while not done.is_set():
            assert all(len(row) == len(columns) for row in rows())


def test_a_calibration_is_lerobots_to_the_byte(tmp_path: Path) -> None:
    theirs = LEROBOT["calibrate"]
    with arm(calibrated=False) as bus:
        device = SOArm(bus.port, "follower", "robots", name="new", calibration_dir=tmp_path)
        device.open()
        before = len(bus.requests)
        setup.calibrate(device, Hand(bus, iter([""])))
        assert writes([request.hex(" ") for request in bus.requests[before:]]) == theirs["requests"]
        assert [motor.memory[9:33].hex() for motor in bus.motors] == [
            memory[18:66] for memory in theirs["registers"]
        ]
        assert (tmp_path / "new.json").read_text() == theirs["file"]
        device.check_calibration()
        assert device.different_from_file() == []
        device.close()
        again = SOArm(bus.port, "follower", "robots", name="new", calibration_dir=tmp_path)
        assert again.calibration == device.calibration


def test_a_joint_that_was_not_moved_or_passed_the_end_is_measured_again(tmp_path: Path) -> None:
    class Careless(Hand):
        turns = 0

        def watch(self, title: str, columns: Any, rows: Callable[[], Any]) -> None:
            self.turns += 1
            if self.turns == 1:
                rows()
            elif self.turns == 2:
                for share in (0, 1900, 2300, 0):
                    self.bus.motors[1].turn((middle(self.bus.motors[1]) + share) % 4096)
                    rows()
            else:
                super().watch(title, columns, rows)

    with arm(calibrated=False) as bus:
        device = SOArm(bus.port, "follower", "robots", name="new", calibration_dir=tmp_path)
        device.open()
        hand = Careless(bus, iter(["", "", ""]))
        setup.calibrate(device, hand)
        device.close()
    assert "shoulder_pan, shoulder_lift, elbow_flex, wrist_flex, gripper hardly moved" in hand.said[1]
    assert hand.said[3].startswith("shoulder_lift passed the end of the sensor's turn")
    assert (tmp_path / "new.json").read_text() == LEROBOT["calibrate"]["file"]


def test_a_calibration_that_is_there_goes_into_the_motors(folder: Path) -> None:
    with arm(calibrated=False) as bus:
        robot = follower(bus.port, folder)
        with pytest.raises(
            RobotError,
            match=r"holds another calibration than .*black.json: shoulder_pan, .* smolact robot calibrate",
        ):
            robot.connect()
        device = robot.arms[""]
        device.open()
        setup.calibrate(device, Hand(bus, iter([""])))
        device.close()
        robot.connect()
        robot.disconnect()


def test_units_are_lerobots(folder: Path) -> None:
    """The formulas, on values whose results are known; the side-by-side test compares a million."""
    motor = MotorCalibration(1, 0, 0, 1000, 3000)
    turned = MotorCalibration(1, 1, 0, 1000, 3000)
    assert (
        motor.to_unit(2512, JointUnit.DEGREES) == turned.to_unit(2512, JointUnit.DEGREES) == 512 * 360 / 4095
    )
    assert (
        motor.to_unit(1500, JointUnit.RANGE_M100_100)
        == -50
        == -turned.to_unit(1500, JointUnit.RANGE_M100_100)
    )
    assert (
        motor.to_unit(900, JointUnit.RANGE_0_100) == 0 and turned.to_unit(900, JointUnit.RANGE_0_100) == 100
    )
    assert motor.to_steps(45.0, JointUnit.DEGREES) == int(45 * 4095 / 360 + 2000)
    assert (
        motor.to_steps(-200.0, JointUnit.RANGE_M100_100)
        == 1000
        == turned.to_steps(200.0, JointUnit.RANGE_M100_100)
    )
    assert (
        motor.to_steps(33.33, JointUnit.RANGE_0_100) == 1666
        and turned.to_steps(33.33, JointUnit.RANGE_0_100) == 2333
    )
    for entry, unit, steps, _ in conversions(2000, seed=0):
        known, mode = MotorCalibration(**entry), JointUnit(unit)
        held = steps if mode is JointUnit.DEGREES else min(max(steps, known.range_min), known.range_max)
        assert abs(known.to_steps(known.to_unit(steps, mode), mode) - held) <= 1  # int() cuts


def test_a_calibration_is_found_where_lerobot_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_LEROBOT_CALIBRATION", "HF_LEROBOT_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    base = tmp_path / "lerobot" / "calibration"
    assert calibration_file("robots", "black") == base / "robots" / "so_follower" / "black.json"
    older = base / "teleoperators" / "so101_leader" / "blue.json"
    older.parent.mkdir(parents=True)
    older.write_text("{}")
    assert calibration_file("teleoperators", "blue") == older
    monkeypatch.setenv("HF_LEROBOT_CALIBRATION", str(tmp_path / "mine"))
    assert (
        calibration_file("teleoperators", "blue")
        == tmp_path / "mine" / "teleoperators" / "so_leader" / "blue.json"
    )
    assert calibration_file("robots", None, tmp_path) == tmp_path / "None.json"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no JSON"),
        ("{}", "should have the motors shoulder_pan, .* found "),
        (json.dumps(CALIBRATION | {"gripper": {"id": 6}}), "has for 'gripper' .*expected id, drive_mode"),
        (
            json.dumps(CALIBRATION | {"gripper": CALIBRATION["gripper"] | {"range_min": "1"}}),
            "expected integers",
        ),
        (json.dumps(CALIBRATION | {"gripper": CALIBRATION["gripper"] | {"id": 5}}), "has id 5 for 'gripper'"),
        (
            json.dumps(CALIBRATION | {"gripper": CALIBRATION["gripper"] | {"range_max": 9}}),
            "two rising numbers",
        ),
    ],
)
def test_a_damaged_calibration_is_told_with_its_file(text: str, message: str, folder: Path) -> None:
    (folder / "black.json").write_text(text)
    with pytest.raises(ConfigError, match=f"{folder}.*{message}"):
        follower("nowhere", folder)


def test_settings_that_do_not_fit_are_errors(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"so101_follower needs --robot.port"):
        make_robot("so101_follower", ROBOTS)
    with pytest.raises(ConfigError, match=r"one for each of shoulder_pan, .*found gripper"):
        follower("nowhere", folder, max_relative_target={"gripper": 3.0})
    with pytest.raises(ConfigError, match="must be above 0"):
        follower("nowhere", folder, max_relative_target=0.0)
    with pytest.raises(
        ConfigError, match=r"There is no 'grip.pos' in this robot's actions. Did you mean 'gripper.pos'"
    ):
        follower("nowhere", folder, limits={"grip.pos": (0, 1)})


def test_the_gate_has_the_calibrations_limits(folder: Path) -> None:
    with arm() as bus:
        robot = follower(bus.port, folder, max_step=None)
        robot.connect()
        try:
            start = robot.get_observation()[STATE]
            np.testing.assert_array_equal(robot.gate.position, start)
            before = bus.goals()
            with pytest.raises(UnsafeActionError, match=r"'shoulder_pan\.pos' to 140: outside its limits"):
                robot.send_action(np.array([140, *start[1:]], np.float32))
            with pytest.raises(UnsafeActionError, match="largest step of 30"):
                robot.send_action(start + np.array([31, 0, 0, 0, 0, 0], np.float32))
            assert bus.goals() == before
        finally:
            robot.disconnect()


def test_a_leader_fits_its_robot_or_says_why_not(folder: Path) -> None:
    with pytest.raises(
        RobotError, match=r"gives 'shoulder_pan.pos' in range_m100_100 and robot 'so_follower' takes degrees"
    ):
        leader("nowhere", folder, use_degrees=False).connect(follower("nowhere", folder))


class Holding:
    """A policy that holds the robot where it is."""

    task = current_instruction = "hold"

    def __init__(self, gate: Gate) -> None:
        self.gate = gate

    def begin(self, task: str) -> None: ...

    def restart(self) -> None: ...

    def get_action(self, observation: Any) -> Any:
        return self.gate.position


def test_a_leader_that_corrects_a_policy_is_brought_to_the_robot_first(folder: Path) -> None:
    with arm() as bus:
        device, robot = leader(bus.port, folder), follower(bus.port, folder)
        device.connect(robot)
        try:
            gate = Gate(make_limits(robot.features.action, {}, 30.0))
            gate.position = np.array([10, -10, 5, -5, 2, 50], np.float32)
            source = CorrectedSource(Holding(gate), device, gate, 10)  # type: ignore[arg-type]
            source.begin("hold")
            source.get_action({})
            assert bus.torque() == [0] * 6
            source.press(KEY)
            while source.phase is not Phase.CORRECTING:
                assert source.get_action({}) is None
            assert bus.torque() == [0] * 6
            assert device.get_action({}) == pytest.approx(gate.position, abs=0.1)
            assert source.get_action({}) == pytest.approx(gate.position, abs=0.1)
        finally:
            device.disconnect()


def test_a_leader_is_driven_and_let_go(folder: Path) -> None:
    with arm() as bus:
        device = leader(bus.port, folder)
        device.connect(follower(bus.port, folder))
        try:
            assert bus.torque() == [0] * 6
            device.drive_to([10, -10, 5, -5, 2, 50])
            device.drive_to([11, -11, 6, -6, 3, 60])
            assert device.get_action({}) == pytest.approx([11, -11, 6, -6, 3, 60], abs=0.1)
            assert bus.torque() == [1] * 6
            device.let_go()
            assert bus.torque() == [0] * 6
        finally:
            device.disconnect()


def test_messages_about_two_arms_name_the_flags_of_one(folder: Path) -> None:
    arms = {"left_arm_config": {"port": "a"}, "right_arm_config": {"port": "b"}, "calibration_dir": folder}
    pair = make_robot("bi_so_follower", ROBOTS, **arms)
    assert pair.features.action[5:7] == ("left_gripper.pos", "right_shoulder_pan.pos")
    for wrong, message in (
        (
            {"port": "b", "max_relative_target": -1.0},
            r"--robot\.right_arm_config\.max_relative_target of 'shoulder_pan' is -1",
        ),
        ({"port": "b", "prot": 1}, r"no setting --robot\.right_arm_config\.prot\. Did you mean 'port'"),
        ({"port": "a"}, r"left_arm_config\.port and --robot\.right_arm_config\.port are both a"),
        ({}, r"Each arm needs its port: --robot\.right_arm_config\.port"),
    ):
        with pytest.raises(ConfigError, match=message):
            make_robot("bi_so_follower", ROBOTS, **{**arms, "right_arm_config": wrong})
    leaders = {"left_arm_config": {"port": "c"}, "right_arm_config": {"port": "d", "use_degrees": False}}
    with pytest.raises(
        RobotError,
        match=r"'right_shoulder_pan.pos' in range_m100_100 .* takes degrees: .*--teleop\.right_arm_config\.use_degrees",
    ):
        make_teleoperator("bi_so_leader", TELEOPERATORS, **leaders, calibration_dir=folder).connect(pair)

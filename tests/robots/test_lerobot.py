"""The adapter over LeRobot's drivers, against a stand-in with their interface (`lerobot_arm.py` runs the real ones)."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from smolact.errors import ConfigError, FeatureError, MissingDependencyError, RobotError, UnsafeActionError
from smolact.robots.base import Robot, Teleoperator
from smolact.robots.factory import make_robot, make_teleoperator, robot_types, teleoperator_types
from smolact.robots.lerobot import LeRobotRobot, LeRobotTeleoperator
from smolact.robots.safety import Gate, make_limits
from smolact.runtime.loop import TeleoperatorSource
from smolact.types import STATE

pytestmark = pytest.mark.usefixtures("lerobot")

CAMERA = {"type": "opencv", "index_or_path": 0, "width": 6, "height": 4, "fps": 30}
FRONT = "observation.images.front"


def arm(folder: Path, **settings: Any) -> LeRobotRobot:
    settings = {"port": "usb0", "id": "black", "calibration_dir": str(folder)} | settings
    robot = make_robot("so101_follower", **settings)
    assert isinstance(robot, LeRobotRobot)
    return robot


def leader(folder: Path, **settings: Any) -> LeRobotTeleoperator:
    settings = {"port": "usb1", "id": "black", "calibration_dir": str(folder)} | settings
    teleoperator = make_teleoperator("so101_leader", **settings)
    assert isinstance(teleoperator, LeRobotTeleoperator)
    return teleoperator


@pytest.fixture
def robot(calibrated: Path) -> LeRobotRobot:
    connected = arm(calibrated, cameras={"front": CAMERA})
    connected.connect()
    return connected


def test_numbers_and_pictures_have_the_names_that_lerobot_stores(calibrated: Path) -> None:
    robot = arm(calibrated, cameras={"front": CAMERA})
    assert isinstance(robot, Robot) and isinstance(leader(calibrated), Teleoperator)
    assert robot.name == "so_follower"
    assert robot.features.action == robot.features.vectors[STATE] == ("shoulder_pan.pos", "gripper.pos")
    assert robot.features.cameras == {FRONT: (4, 6)}
    assert robot.features.units == dict.fromkeys(("action", STATE), ("degrees", "range_0_100"))
    low, high = np.array(robot.features.limits).T
    np.testing.assert_allclose([low, high], [[-90, 0], [90, 100]], atol=0.1)


def test_an_observation_is_a_vector_and_pictures(robot: LeRobotRobot) -> None:
    robot.driver.bus.positions = {"gripper": 50.0, "shoulder_pan": -3.5}
    found = robot.get_observation()
    assert set(found) == {STATE, FRONT}
    np.testing.assert_array_equal(found[STATE], np.array([-3.5, 50], np.float32), strict=True)
    assert found[FRONT].shape == (4, 6, 3) and found[FRONT].dtype == np.uint8


def test_an_action_reaches_the_motors_by_name(robot: LeRobotRobot) -> None:
    sent = robot.send_action(np.array([12.0, 80.0], np.float32))
    assert robot.driver.bus.written == [{"shoulder_pan": 12.0, "gripper": 80.0}]
    np.testing.assert_array_equal(sent, np.array([12, 80], np.float32), strict=True)


def test_what_the_driver_limits_is_what_was_sent(calibrated: Path) -> None:
    robot = arm(calibrated, max_relative_target=5.0)
    robot.connect()
    np.testing.assert_array_equal(robot.send_action(np.array([12.0, 80.0])), [5, 5])
    robot.send_action(np.array([35.0, 80.0]))  # 30 from where it was really sent
    with pytest.raises(UnsafeActionError, match="largest step of 30"):
        robot.send_action(np.array([45.0, 80.0]))


@pytest.mark.parametrize(
    ("action", "message"),
    [
        ([np.nan, 0], "'shoulder_pan.pos' to nan: not finite"),
        ([0, np.inf], "not finite"),
        ([31, 0], "largest step of 30"),
        ([0, 140], r"outside its limits \[0, 100\]"),
        ([0], "2"),
    ],
)
def test_nothing_unsafe_reaches_the_motors(robot: LeRobotRobot, action: list[float], message: str) -> None:
    with pytest.raises(UnsafeActionError, match=message):
        robot.send_action(np.array(action))
    assert robot.driver.bus.written == []


def test_the_gate_is_on_unless_it_is_opened(calibrated: Path) -> None:
    robot = arm(calibrated, max_step=0, limits={"shoulder_pan.pos": (-170.0, 170.0)})
    robot.connect()
    robot.send_action(np.array([160.0, 0.0]))
    with pytest.raises(
        ConfigError, match=r"no 'shoulder' in this robot's actions. Did you mean 'shoulder_pan.pos'"
    ):
        arm(calibrated, max_step={"shoulder": 3.0})


def test_a_chunk_is_looked_at_whole_before_its_first_action(robot: LeRobotRobot) -> None:
    robot.gate.check_chunk([[10, 0], [20, 50]], age=0.5)
    with pytest.raises(UnsafeActionError, match="whole chunk was refused"):
        robot.gate.check_chunk([[10, 0], [90, 50]])
    with pytest.raises(UnsafeActionError, match=r"3.00 s old; the most allowed is 2 s"):
        robot.gate.check_chunk([[10, 0]], age=3.0)
    assert robot.driver.bus.written == []


def test_a_leader_arm_is_followed_a_step_at_a_time(robot: LeRobotRobot, calibrated: Path) -> None:
    teleoperator = leader(calibrated)
    teleoperator.connect(robot)
    teleoperator.driver.bus.positions = {"gripper": 100.0, "shoulder_pan": 100.0}
    driver = TeleoperatorSource(teleoperator, robot.gate)
    path = [robot.send_action(driver.get_action(robot.get_observation())) for _ in range(4)]
    np.testing.assert_allclose(path, [[30, 100], [60, 100], [90, 100], [90, 100]], atol=0.1)


def test_a_teleoperator_that_does_not_fit_is_refused(robot: LeRobotRobot) -> None:
    with pytest.raises(
        RobotError, match=r"gives delta_x, delta_y, and the robot also takes shoulder_pan.pos"
    ):
        make_teleoperator("odd_pad").connect(robot)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"port": "missing"}, "Could not connect on port 'missing'. .* find-port"),
        ({"port": "/dev/ttyACM_not_there"}, "ttyACM_not_there, which is not there"),
        ({"id": "white"}, r"not calibrated.*white.json.* Run: smolact robot calibrate --robot.type"),
        ({"cameras": {"front": CAMERA | {"index_or_path": "missing"}}}, "Camera 'front' did not open"),
        ({"cameras": {"front": CAMERA | {"index_or_path": "frozen"}}}, "latest frame is too old"),
    ],
)
def test_what_can_not_be_connected_says_why_and_is_left_closed(
    calibrated: Path, settings: dict[str, Any], message: str
) -> None:
    robot = arm(calibrated, **settings)
    with pytest.raises(RobotError, match=message):
        robot.connect()
    bus = robot.driver.bus
    assert not bus.is_connected and not bus.torque
    assert not any(camera.is_connected for camera in robot.driver.cameras.values())


def test_a_cable_that_comes_off_is_an_error_and_the_port_is_still_closed(
    robot: LeRobotRobot, caplog: pytest.LogCaptureFixture
) -> None:
    robot.driver.bus.is_broken = True
    with pytest.raises(RobotError, match=r"no status packet! Is it plugged in and powered\?"):
        robot.get_observation()
    robot.disconnect()
    assert not robot.driver.bus.is_connected and not robot.driver.cameras["front"].is_connected
    assert "its motors may still hold" in caplog.text


def test_a_camera_that_is_gone_does_not_keep_the_motors_on(robot: LeRobotRobot) -> None:
    robot.driver.cameras["front"].is_connected = False  # LeRobot's own disconnect refuses now
    with pytest.raises(RobotError, match="not connected"):
        robot.send_action(np.zeros(2))
    robot.disconnect()
    robot.disconnect()
    assert not robot.driver.bus.is_connected and not robot.driver.bus.torque


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shoulder_pan.pos": float("nan")}, "not finite: shoulder_pan.pos"),
        ({"shoulder_pan.pos": "x"}, "no number"),
        ({"front": np.zeros((4, 6, 3), np.float32)}, r"uint8 \(4, 6, 3\) and gave float32"),
        ({"front": np.zeros((6, 4, 3), np.uint8)}, r"gave uint8 \(6, 4, 3\)"),
        ({"front": None}, "gave NoneType"),
    ],
)
def test_an_observation_that_is_not_what_was_declared_is_an_error(
    robot: LeRobotRobot, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], message: str
) -> None:
    whole = robot.driver.get_observation()
    monkeypatch.setattr(robot.driver, "get_observation", lambda: whole | change)
    with pytest.raises(RobotError, match=message):
        robot.get_observation()


def test_a_missing_number_is_named(robot: LeRobotRobot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(robot.driver, "get_observation", lambda: {"gripper.pos": 1.0})
    with pytest.raises(RobotError, match=r"gave no 'shoulder_pan.pos'; it gave gripper.pos"):
        robot.get_observation()


def test_ages_of_pictures_are_told(robot: LeRobotRobot) -> None:
    assert robot.camera_ages() == {}
    robot.driver.cameras["front"].latest_timestamp = 0.0
    assert robot.camera_ages()[FRONT] > 0


@pytest.mark.parametrize(
    ("type_name", "settings", "message"),
    [
        (
            "so101_folower",
            {},
            "Did you mean 'so101_follower'.* There are: sim, can_arm, koch_follower, so100_follower, so101_follower",
        ),
        ("simm", {}, "Did you mean 'sim'"),
        ("so101_follower", {}, "needs --robot.port. .* find-port"),
        ("so101_follower", {"port": "a", "camera": {}}, "no setting --robot.camera. Did you mean 'cameras'"),
        ("so101_follower", {"port": "a", "cameras": [1]}, "cameras by name"),
        ("so101_follower", {"port": "a", "cameras": {"front": {}}}, "Camera 'front' .* needs a type"),
        ("so101_follower", {"port": "a", "cameras": {"a.b": CAMERA}}, "can't name a camera"),
        (
            "so101_follower",
            {"port": "a", "cameras": {"front": {"type": "opencw"}}},
            "camera of type 'opencw'. .*'opencv'",
        ),
        (
            "so101_follower",
            {"port": "a", "cameras": {"front": CAMERA | {"widht": 1}}},
            "cameras.front.widht. .*'width'",
        ),
        (
            "so101_follower",
            {"port": "a", "cameras": {"front": {"type": "opencv"}}},
            "needs --robot.cameras.front.index",
        ),
        (
            "so101_follower",
            {"port": "a", "cameras": {"front": {"type": "opencv", "index_or_path": 0}}},
            "'width' is requ",
        ),
        ("so101_follower", {"port": "a", "use_degrees": "perhaps"}, "use_degrees"),
    ],
)
def test_wrong_settings_name_what_there_is(type_name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_robot(type_name, {"sim": dict}, **settings)


def test_depth_is_refused(calibrated: Path) -> None:
    with pytest.raises(FeatureError, match=r"front_depth as \(4, 6, 1\).*use_depth: false"):
        arm(calibrated, cameras={"front": CAMERA | {"use_depth": True}})


def test_a_driver_whose_package_is_missing_says_which() -> None:
    with pytest.raises(MissingDependencyError, match="'some-sdk' is required"):
        make_robot("can_arm")


def test_a_type_that_can_not_be_imported_is_left_out_and_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import lerobot.robots

    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "__init__.py").write_text("import not_there_at_all\n")
    monkeypatch.setattr(lerobot.robots, "__path__", [*lerobot.robots.__path__, str(tmp_path)])
    with caplog.at_level(logging.WARNING):
        assert "so101_follower" in robot_types()
    assert "lerobot.robots.broken is left out: No module named 'not_there_at_all'" in caplog.text


def test_types_are_the_built_in_ones_and_lerobots() -> None:
    assert robot_types({"sim": dict}) == (
        "sim",
        "can_arm",
        "koch_follower",
        "so100_follower",
        "so101_follower",
    )
    assert teleoperator_types() == ("koch_leader", "odd_pad", "so101_leader")


def test_a_built_in_type_is_made_by_its_maker() -> None:
    def sim(env: str, seed: int = 0) -> Any:
        return SimpleNamespace(env=env, seed=seed, gate=Gate(make_limits(("a",), {}, {})))

    made: Any = make_robot("sim", {"sim": sim}, env="table")
    assert (made.env, made.seed) == ("table", 0)
    with pytest.raises(ConfigError, match=r"sim has no setting --robot.sed. Did you mean 'seed'"):
        make_robot("sim", {"sim": sim}, sed=1)


class TestWithoutLeRobot:
    pytestmark = pytest.mark.usefixtures("no_lerobot")

    def test_the_error_names_the_extra(self) -> None:
        for make in (make_robot, make_teleoperator):
            with pytest.raises(
                MissingDependencyError, match=r"Python 3.12 or later and: pip install 'smolact\[lerobot\]'"
            ):
                make("so101_follower", {"sim": dict})

    def test_built_in_types_are_there(self) -> None:
        assert robot_types({"sim": dict}) == ("sim",)
        with pytest.raises(ConfigError, match="Did you mean 'sim'"):
            make_robot("simm", {"sim": dict})

"""`smolact robot …` as a user types it: over LeRobot's stand-in, and on simulated SO-101s."""

from __future__ import annotations

import io
import json
import os
import threading
from pathlib import Path

import pytest

from smolact.cli.main import main
from smolact.robots import ports
from tests.robots.conftest import calibrated, lerobot, no_lerobot
from tests.robots.feetech_bus import MemoryPort, Motor, Motors
from tests.robots.so101_session import CALIBRATION, middle, move_by_hand, prepare

__all__ = ["calibrated", "lerobot", "no_lerobot"]

CAMERAS = "--robot.cameras={ front: {type: opencv, index_or_path: 0, width: 6, height: 4, fps: 30}}"


@pytest.fixture(autouse=True)
def nothing_plugged_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "dev"
    folder.mkdir()
    monkeypatch.setattr(ports, "DEVICES", folder)
    monkeypatch.setattr(ports.sys, "platform", "linux")
    return folder


def said(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    return " ".join((captured.out + captured.err).split())


def arm(folder: Path, section: str = "robot", kind: str = "follower", name: str = "black") -> list[str]:
    return [
        f"--{section}.type=koch_{kind}",
        f"--{section}.port=usb0",
        f"--{section}.id={name}",
        f"--{section}.calibration_dir={folder}",
    ]


def test_the_group_lists_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["robot"]) == 2
    assert "find-cameras" in said(capsys)
    assert main(["robot", "calibrat"]) == 2
    assert "Did you mean 'calibrate'?" in said(capsys)


@pytest.mark.parametrize(
    "command",
    [
        "info",
        "find-port",
        "find-cameras",
        "setup-motors",
        "calibrate",
        "teleoperate",
        "find-joint-limits",
        "doctor",
    ],
)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["robot", command, "--help"]) == 0
    assert f"usage: smolact robot {command}" in said(capsys)


@pytest.mark.usefixtures("lerobot")
def test_help_lists_the_settings_of_a_type(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["robot", "calibrate", "--help", "--robot.type=koch_follower"]) == 0
    assert "--robot.port=REQUIRED" in (text := said(capsys)) and "--robot.max_step=null" in text


@pytest.mark.usefixtures("lerobot")
def test_info_lists_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["robot", "info"]) == 0
    text = said(capsys)
    assert "robots sim, so100_follower, so101_follower, bi_so_follower, can_arm, koch_follower" in text
    assert "so101_leader, bi_so_leader, koch_leader" in text
    assert "cameras opencv" in text and "serial ports none" in text


@pytest.mark.usefixtures("lerobot")
def test_info_tells_of_a_robot(calibrated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["robot", "info", *arm(calibrated), CAMERAS, "--robot.max_step={gripper.pos: 20}"]) == 0
    text = said(capsys)
    assert "observation.state (2): shoulder_pan.pos, gripper.pos" in text
    assert "observation.images.front: 6×4" in text and "black.json" in text
    assert "shoulder_pan.pos: -90.022, 90.022, 30" in text and "gripper.pos: 0, 100, 20" in text


@pytest.mark.usefixtures("lerobot")
def test_limits_are_given_by_name(calibrated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--robot.limits={shoulder_pan.pos: [-60, 60]}", "--robot.max_step=0"]
    assert main(["robot", "info", *arm(calibrated), *words]) == 0
    assert "shoulder_pan.pos: -60, 60, inf" in said(capsys)
    assert main(["robot", "info", *arm(calibrated), "--robot.limits={shoulder: [1, 2]}"]) == 2
    assert "Did you mean 'shoulder_pan.pos'?" in said(capsys)


@pytest.mark.usefixtures("no_lerobot")
def test_without_lerobot_the_extra_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["robot", "info"]) == 0
    assert "pip install 'smolact[lerobot]'" in said(capsys)
    assert main(["robot", "calibrate", "--robot.type=koch_follower"]) == 1
    assert "pip install 'smolact[lerobot]'" in said(capsys)


@pytest.mark.usefixtures("lerobot")
def test_driving_by_hand(calibrated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*arm(calibrated), *arm(calibrated, "teleop", "leader"), "--fps=50", "--teleop_time_s=0.1"]
    assert main(["robot", "teleoperate", *words]) == 0
    assert "ticks at" in said(capsys)


@pytest.mark.usefixtures("lerobot")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            [],
            "needs a robot: --robot.type=NAME. There are: sim, so100_follower, so101_follower, bi_so_follower, can_arm",
        ),
        (["--robot.type=koch_follower", "--robot.port=usb0"], "--teleop.type=NAME"),
        (["--robot.type=koch_follower", "--robot.prot=usb0"], "Did you mean '--robot.port'?"),
        (["--robot.type=koch", "--teleop.type=koch_leader"], "no robot of type 'koch'"),
        (["--robot.port=usb0"], "needs a robot"),
        (
            ["--robot.type=koch_follower", "--teleop.type=koch_leader"],
            "needs --robot.port. There is no serial port here",
        ),
        (["--display_data=true", "--robot.type=sim", "--teleop.type=expert"], "leave it out"),
    ],
)
def test_what_is_wrong_is_said_with_what_there_is(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["robot", "teleoperate", *words]) == 2
    assert message in said(capsys)


@pytest.mark.usefixtures("lerobot")
def test_an_arm_that_is_not_calibrated_is_told_how(
    calibrated: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*arm(calibrated, name="white"), *arm(calibrated, "teleop", "leader")]
    assert main(["robot", "teleoperate", *words]) == 1
    assert "Run: smolact robot calibrate --robot.type" in said(capsys)


@pytest.mark.usefixtures("lerobot")
def test_calibrating_asks_and_says_where_it_is_kept(
    calibrated: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert main(["robot", "calibrate", *arm(calibrated, name="white")]) == 1
    assert "Run this in a terminal" in said(capsys)
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    assert main(["robot", "calibrate", *arm(calibrated, name="white")]) == 0
    assert str(calibrated / "white.json") in said(capsys) and (calibrated / "white.json").is_file()
    assert main(["robot", "calibrate", *arm(calibrated), *arm(calibrated, "teleop", "leader")]) == 2
    assert "One at a time" in said(capsys)
    assert main(["robot", "calibrate", "--robot.type=sim"]) == 2
    assert "is for SO-100 and SO-101 arms, and this is 'tabletop'" in said(capsys)


def test_the_port_that_goes_is_found(
    nothing_plugged_in: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["robot", "find-port"]) == 1
    assert "no serial port here" in said(capsys)
    for name in ("ttyACM0", "ttyACM1"):
        (nothing_plugged_in / name).touch()
    assert main(["robot", "find-port", "--list"]) == 0
    assert said(capsys).endswith("ttyACM1")

    class Cable(io.StringIO):
        def readline(self, *_: int) -> str:
            (nothing_plugged_in / "ttyACM0").unlink()
            return "\n"

    monkeypatch.setattr("sys.stdin", Cable())
    assert main(["robot", "find-port"]) == 0
    assert f"--robot.port={nothing_plugged_in / 'ttyACM0'}" in said(capsys)
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert main(["robot", "find-port"]) == 1
    assert "Nobody answers" in said(capsys)


@pytest.mark.usefixtures("lerobot")
def test_no_camera_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["robot", "find-cameras", "--type=opencv"]) == 1
    assert "No camera answers. There is no video device here." in said(capsys)
    for words in (["--type=webcam"], ["webcam"]):
        assert main(["robot", "find-cameras", *words]) == 2
        assert "opencv and intelrealsense, found 'webcam'" in said(capsys)


@pytest.mark.usefixtures("lerobot")
def test_a_realsense_camera_has_lerobots_two_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["robot", "find-cameras", "realsense"]) == 1
    assert "Cameras of type intelrealsense need the package 'pyrealsense2'" in said(capsys)


@pytest.fixture
def so101(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Motors:
    """Six simulated motors at every port, whose calibration is black's."""
    motors = Motors(Motor(number) for number in range(1, 7))
    prepare(motors)
    (tmp_path / "black.json").write_text(json.dumps(CALIBRATION))
    monkeypatch.setattr("smolact.robots.feetech.bus.open_port", lambda port, baud_rate: MemoryPort(motors))
    return motors


def native(folder: Path, section: str = "robot", name: str = "black") -> list[str]:
    kind = {"robot": "follower", "teleop": "leader"}[section]
    return [word.replace("koch_", "so101_") for word in arm(folder, section, kind, name)]


def test_an_so101_is_calibrated(
    so101: Motors, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Person(io.StringIO):
        lines = 0

        def readline(self, *_: int) -> str:
            self.lines += 1
            if self.lines == 1:
                for motor in so101.motors:
                    motor.turn(middle(motor))
                return "\n"
            done = threading.Event()
            move_by_hand(so101, done.set)
            done.wait()
            return "\n"

    monkeypatch.setattr("sys.stdin", Person())
    assert main(["robot", "calibrate", *native(tmp_path, name="new")]) == 0
    text = said(capsys)
    assert "Move every joint to the middle of its range" in text
    assert "Move every joint but wrist_roll" in text and "shoulder_pan" in text
    assert f"The calibration of the follower 'new' is in {tmp_path / 'new.json'}" in text
    assert main(["robot", "info", *native(tmp_path, name="new")]) == 0
    assert "shoulder_pan.pos: -80" in said(capsys)
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert main(["robot", "calibrate", *native(tmp_path), "--new"]) == 1
    assert "Nobody answers: this asks questions, so run it in a terminal." in said(capsys)


def test_an_so101_is_examined(so101: Motors, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["robot", "doctor", *native(tmp_path), "--readings=5"]
    assert main(words) == 0
    text = said(capsys)
    assert "5 readings: p50" in text and "The follower 'black' is well." in text
    so101.motors[5].memory[63] = 71
    assert main(words) == 1
    assert "wrong gripper has 71 °C" in said(capsys)


def test_an_so101_is_driven_by_its_leader(
    so101: Motors, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*native(tmp_path), *native(tmp_path, "teleop"), "--fps=50", "--teleop_time_s=0.1"]
    assert main(["robot", "teleoperate", *words]) == 0
    assert "ticks at" in said(capsys) and so101.torque() == [0] * 6


def test_joint_limits_are_a_flag(
    so101: Motors, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    assert main(["robot", "find-joint-limits", *native(tmp_path)]) == 0
    assert '--robot.limits="{' in said(capsys)


def test_joint_limits_are_there_after_a_time(
    so101: Motors, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, writing = os.pipe()  # nobody presses Enter
    with os.fdopen(reading) as nobody, os.fdopen(writing, "w"):
        monkeypatch.setattr("sys.stdin", nobody)
        assert main(["robot", "find-joint-limits", *native(tmp_path), "--teleop_time_s=0.1"]) == 0
    assert '--robot.limits="{' in said(capsys)
    assert main(["robot", "find-joint-limits", *native(tmp_path), "--teleop_time_s=0"]) == 2
    assert "--teleop_time_s=0: it must be above 0" in said(capsys)


def test_motors_get_their_ids(
    so101: Motors, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("s\n" * 6))
    assert main(["robot", "setup-motors", *native(tmp_path)]) == 0
    assert "Connect the 'gripper' motor to the board, and no other" in said(capsys)

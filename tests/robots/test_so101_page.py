"""docs/use/so101.md, typed on simulated arms: word for word but for ports, cameras, and the length of what takes an evening."""

from __future__ import annotations

import io
import shlex
import threading
from pathlib import Path

import pytest

from smolact.cli.main import main
from smolact.datasets.metadata import LeRobotDatasetMetadata
from smolact.robots import cameras, find_cameras, ports
from tests.documents import ROOT, blocks
from tests.robots.feetech_bus import MemoryPort, Motor, Motors
from tests.robots.so101_session import middle, move_by_hand, prepare

PICTURE = "lavfi:testsrc=size=640x480:rate=30,realtime"
SHORT = {
    "teleoperate": ["--teleop_time_s=0.5"],
    "record": ["--dataset.num_episodes=2", "--dataset.episode_time_s=1", "--dataset.reset_time_s=0.1"],
}


class Arms:
    """An arm at each port, and the person beside them, who answers whatever is asked."""

    def __init__(self, devices: Path) -> None:
        self.devices = devices
        self.at: dict[str, Motors] = {}
        for name in ("ttyACM0", "ttyACM1"):
            (devices / name).touch()
            motors = Motors(Motor(number) for number in range(1, 7))
            prepare(motors, calibrated=False)
            self.at[name] = motors
        self.port = "ttyACM0"

    def open_port(self, port: str, baud_rate: int) -> MemoryPort:
        self.port = Path(port).name
        return MemoryPort(self.at[self.port])

    def answer(self, question: str) -> str:
        motors = self.at[self.port]
        if "Unplug the robot's USB cable" in question:
            (self.devices / "ttyACM1").unlink()
        elif "to the middle of its range" in question:
            for motor in motors.motors:
                motor.turn(middle(motor))
        elif "Connect the '" in question:
            return "s\n"  # their ids are right
        else:
            done = threading.Event()
            move_by_hand(motors, done.set)
            done.wait()
        return "\n"


class Terminal(io.StringIO):
    """Standard input of a person who reads what is written to standard error."""

    def __init__(self, arms: Arms, capsys: pytest.CaptureFixture[str]) -> None:
        super().__init__()
        self.arms, self.capsys = arms, capsys

    def readline(self, *_: int) -> str:
        return self.arms.answer(self.capsys.readouterr().err)


def commands() -> list[list[str]]:
    """The page's commands, up to those that train."""
    page = ROOT / "docs" / "use" / "so101.md"
    text = "\n".join(blocks(page, "bash")).replace("\\\n", " ")
    found = [shlex.split(line, comments=True) for line in text.splitlines()]
    typed = [words[1:] for words in found if words[:1] == ["smolact"]]
    return typed[: next(at for at, words in enumerate(typed) if words[0] == "train")]


def test_the_page_is_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    devices = tmp_path / "dev"
    devices.mkdir()
    arms = Arms(devices)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_LEROBOT_CALIBRATION", str(tmp_path / "calibration"))
    monkeypatch.setattr(ports, "DEVICES", devices)
    monkeypatch.setattr("smolact.robots.feetech.bus.open_port", arms.open_port)
    monkeypatch.setattr(find_cameras, "devices", lambda: [(PICTURE, "")])
    source = cameras.CameraSettings.source.fget
    assert source is not None
    monkeypatch.setattr(
        cameras.CameraSettings,
        "source",
        property(
            lambda self: (
                (PICTURE.removeprefix("lavfi:"), "lavfi", {}) if self.index_or_path == 0 else source(self)
            )
        ),
    )
    typed = commands()
    assert {tuple(words[:2]) for words in typed if words[0] == "robot"} >= {
        ("robot", name)
        for name in (
            "info",
            "find-port",
            "find-cameras",
            "setup-motors",
            "calibrate",
            "doctor",
            "teleoperate",
        )
    }
    for words in typed:
        monkeypatch.setattr("sys.stdin", Terminal(arms, capsys))
        name = words[1] if words[0] == "robot" else words[0]
        code = main([*words, *SHORT.get(name, []), *(["--readings=20"] if name == "doctor" else [])])
        busy_machine = name == "doctor" and code == 1  # which it is there to tell
        assert code == 0 or busy_machine, (words, capsys.readouterr().err)
        (devices / "ttyACM1").touch()
    recorded = LeRobotDatasetMetadata(tmp_path / "outputs/datasets/me/lego")
    assert recorded.total_episodes == 2 and recorded.robot_type == "so_follower"
    assert list(recorded.features["action"].names or [])[:2] == ["shoulder_pan.pos", "shoulder_lift.pos"]
    assert "observation.images.top" in recorded.features
    assert all(motors.torque() == [0] * 6 for motors in arms.at.values())

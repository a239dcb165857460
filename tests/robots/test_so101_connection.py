"""Connecting an arm, and connecting it again: adapters that come back, joints out of their limits, cameras."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

if sys.platform == "win32":
    pytest.skip("simulated motors need a pseudo-terminal", allow_module_level=True)

from smolact.cli.main import main
from smolact.errors import RobotError, UnsafeActionError
from smolact.robots.base import Observation
from smolact.robots.cameras import AVCamera
from smolact.runtime.teleoperation import teleoperate
from smolact.types import STATE
from tests.robots.feetech_bus import MemoryPort, Motors
from tests.robots.so101_arm import follower

Plugged = dict[str, tuple[str | None, str]]
"""The serial number and the USB socket of the adapter at each port."""


@pytest.fixture
def plugged(bus: Motors, monkeypatch: pytest.MonkeyPatch) -> Plugged:
    """The adapters that the system lists, one of which belongs to the arm; a port that is not among them can't be opened."""
    adapters: Plugged = {"/dev/ttyACM0": ("5A46", "1-1")}

    def comports() -> list[SimpleNamespace]:
        return [
            SimpleNamespace(device=name, vid=0x1A86, pid=0x55D3, serial_number=number, location=socket)
            for name, (number, socket) in adapters.items()
        ]

    def open_port(name: str, baud_rate: int) -> MemoryPort:
        if name not in adapters:
            raise FileNotFoundError(2, f"could not open port {name}")
        return MemoryPort(bus)

    monkeypatch.setattr("serial.tools.list_ports.comports", comports)
    monkeypatch.setattr("smolact.robots.feetech.bus.open_port", open_port)
    return adapters


@pytest.mark.parametrize(
    ("before", "after"),
    [
        # by its serial number, in another socket, while another arm has its old name
        (("5A46", "1-1"), {"/dev/ttyACM0": ("77B1", "1-2"), "/dev/ttyACM1": ("5A46", "1-3")}),
        # by its socket, without a serial number
        ((None, "1-1"), {"/dev/ttyACM0": (None, "1-2"), "/dev/ttyACM1": (None, "1-1")}),
        # by its socket, where a series has one serial number
        (("0001", "1-1"), {"/dev/ttyACM0": ("0001", "1-2"), "/dev/ttyACM1": ("0001", "1-1")}),
    ],
)
def test_an_adapter_is_found_again_under_another_name(
    before: tuple[str | None, str],
    after: Plugged,
    plugged: Plugged,
    folder: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    plugged["/dev/ttyACM0"] = before
    robot = follower("/dev/ttyACM0", folder)
    robot.connect()
    robot.drop()
    plugged.clear()
    with pytest.raises(RobotError, match="The USB adapter that was at /dev/ttyACM0"):
        robot.reconnect()
    plugged |= after
    robot.reconnect()
    assert robot.arms[""].bus.port == "/dev/ttyACM1"
    assert "The follower 'black' is at /dev/ttyACM1 now; it was at /dev/ttyACM0." in caplog.text
    robot.disconnect()


def test_an_adapter_that_could_be_another_is_not_opened(plugged: Plugged, folder: Path, bus: Motors) -> None:
    plugged["/dev/ttyACM0"] = (None, "1-1")
    robot = follower("/dev/ttyACM0", folder)
    robot.connect()
    robot.drop()
    plugged |= {"/dev/ttyACM0": (None, "1-2"), "/dev/ttyACM1": (None, "1-3")}
    before = len(bus.requests)
    with pytest.raises(
        RobotError, match=r"without a serial number, USB socket 1-1\).*Plug it into that socket"
    ):
        robot.reconnect()
    assert len(bus.requests) == before


LIMITS = {"shoulder_pan.pos": (-30.0, -10.0), "gripper.pos": (0.0, 50.0)}


def test_an_arm_outside_its_limits_is_told_at_connection(bus: Motors, folder: Path) -> None:
    robot = follower("memory", folder, limits=LIMITS)
    message = (
        r"The robot's 'shoulder_pan.pos' stands at [\d.]+, outside its limits \[-30, -10\]; its 'gripper.pos' stands at .*"
        r"Move it back by hand, allow more with --robot.limits, or calibrate it again"
    )
    with pytest.raises(UnsafeActionError, match=message):
        robot.connect()
    assert bus.torque() == [0] * 6 and not robot.arms[""].bus.is_open


@pytest.mark.parametrize("command", ["rollout", "record"])
def test_what_is_wrong_with_the_arm_is_told_before_a_policy_is_loaded(
    command: str, bus: Motors, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arm = [
        "--robot.type=so101_follower",
        "--robot.port=memory",
        "--robot.id=black",
        f"--robot.calibration_dir={folder}",
        "--robot.limits={shoulder_pan.pos: [-30, -10]}",
    ]
    task = {
        "rollout": ["--task=Wave."],
        "record": ["--dataset.single_task=Wave.", f"--dataset.root={folder / 'data'}"],
    }
    (folder / "config.json").write_text('{"type": "smolvla"}')  # a policy without weights
    assert main([command, *arm, *task[command], f"--policy.path={folder}"]) == 1
    assert "'shoulder_pan.pos' stands at" in capsys.readouterr().err
    assert not (folder / "data").exists()


CAMERA = {"type": "opencv", "width": 64, "height": 48, "warmup_s": 0}
PICTURES = "lavfi:testsrc=size=64x48:rate=30"


def test_a_person_drives_on_when_a_camera_ends(
    bus: Motors, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Hand:
        name = "hand"

        def connect(self, robot: object) -> None: ...

        def get_action(self, observation: Observation) -> np.ndarray:
            return observation[STATE]

        def disconnect(self) -> None: ...

    front = CAMERA | {"index_or_path": f"{PICTURES}:duration=0.2,realtime"}
    robot = follower("memory", folder, cameras={"front": front})
    robot.connect()
    while robot.camera_ages()["observation.images.front"] < 0.3:
        time.sleep(0.01)
    assert teleoperate(robot, Hand(), fps=100, seconds=0.1).count > 1
    assert caplog.text.count("The camera 'front' gives no new picture: it has ended.") == 1
    assert "The robot is driven without it." in caplog.text
    robot.disconnect()


def test_cameras_are_connected_side_by_side(
    bus: Motors, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect, both = AVCamera.connect, threading.Barrier(2, timeout=30)

    def together(camera: AVCamera) -> None:
        both.wait()  # broken if the other is not being connected
        connect(camera)

    monkeypatch.setattr(AVCamera, "connect", together)
    camera = CAMERA | {"index_or_path": f"{PICTURES},realtime"}
    robot = follower("memory", folder, cameras={"front": camera, "wrist": camera})
    robot.connect()
    assert robot.get_observation().keys() >= {"observation.images.front", "observation.images.wrist"}
    robot.disconnect()


def test_the_errors_of_all_cameras_are_told(bus: Motors, folder: Path) -> None:
    camera = CAMERA | {"index_or_path": f"{PICTURES},realtime"}
    wrong = {"front": camera | {"width": 32}, "wrist": camera | {"fps": 25}, "right": camera}
    robot = follower("memory", folder, cameras=wrong)
    with pytest.raises(RobotError, match=r"'front' gives pictures of 64×48 .*\n.*'wrist' gives 30 pictures"):
        robot.connect()
    assert not any(thread.name.startswith("camera ") for thread in threading.enumerate())

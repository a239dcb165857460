"""Ports: what the system shows, and which one goes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from smolact.errors import RobotError
from smolact.robots import ports


@pytest.fixture
def devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(ports, "DEVICES", tmp_path)
    monkeypatch.setattr(ports.sys, "platform", "linux")
    for name in ("ttyACM1", "ttyACM0", "ttyUSB0", "tty7", "video0", "null"):
        (tmp_path / name).touch()
    return tmp_path


def test_only_ports_that_a_robot_can_be_at_are_listed(devices: Path) -> None:
    assert ports.serial_ports() == [str(devices / name) for name in ("ttyACM0", "ttyACM1", "ttyUSB0")]
    assert ports.ports_present() == f"Serial ports here: {', '.join(ports.serial_ports())}."
    assert ports.cameras_present() == f"Video devices here: {devices / 'video0'}."


@pytest.mark.parametrize(
    ("unplugged", "message"),
    [((), "all are still there"), (("ttyACM0", "ttyUSB0"), "these are: .*ttyACM0, .*ttyUSB0")],
)
def test_one_port_must_go(devices: Path, unplugged: Sequence[str], message: str) -> None:
    assert ports.port_that_goes(lambda _: (devices / "ttyACM1").unlink()) == str(devices / "ttyACM1")
    with pytest.raises(RobotError, match=message):
        ports.port_that_goes(lambda _: [(devices / name).unlink() for name in unplugged])  # type: ignore[arg-type]


def test_without_any_port_there_is_nothing_to_unplug(devices: Path) -> None:
    for path in devices.iterdir():
        path.unlink()
    with pytest.raises(RobotError, match=r"no serial port here.* Plug the robot in"):
        ports.port_that_goes(lambda _: pytest.fail("nobody is asked"))
    assert ports.cameras_present() == "There is no video device here."

"""LeRobot's stand-in on the path, and gone again; an arm in memory, and its calibration."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.robots.feetech_bus import Motors

STANDIN = Path(__file__).with_name("standin")


def forget_lerobot() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "lerobot"]:
        del sys.modules[name]


@pytest.fixture
def lerobot(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The stand-in as `lerobot`."""
    forget_lerobot()
    monkeypatch.syspath_prepend(str(STANDIN))
    yield
    forget_lerobot()


@pytest.fixture
def no_lerobot(monkeypatch: pytest.MonkeyPatch) -> None:
    """No `lerobot`, whatever is installed."""
    forget_lerobot()
    monkeypatch.setattr("smolact.robots.lerobot_drivers.is_installed", lambda: False)


@pytest.fixture
def calibrated(tmp_path: Path) -> Path:
    """A folder with the calibration of 'black', whose joints turn 90° to either side."""
    one = {"id": 1, "drive_mode": 0, "homing_offset": 0, "range_min": 1024, "range_max": 3072}
    tmp_path.joinpath("black.json").write_text(json.dumps(dict.fromkeys(("shoulder_pan", "gripper"), one)))
    return tmp_path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the calibration of 'black', which `bus` holds."""
    from tests.robots.so101_session import CALIBRATION

    (tmp_path / "black.json").write_text(json.dumps(CALIBRATION, indent=4))
    return tmp_path


@pytest.fixture
def bus(monkeypatch: pytest.MonkeyPatch) -> Motors:
    """Six motors in memory, at every port."""
    from tests.robots.feetech_bus import MemoryPort, Motor, Motors
    from tests.robots.so101_session import prepare

    motors = Motors(Motor(number) for number in range(1, 7))
    prepare(motors)
    port = MemoryPort(motors)
    monkeypatch.setattr("smolact.robots.feetech.bus.open_port", lambda name, baud_rate: port)
    monkeypatch.setattr("smolact.robots.feetech.bus.perf_counter", port.perf_counter)
    return motors

"""LeRobot 0.6.1 and the vendor's SDK on the same simulated motors, run anew. Needs a Python that has them."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from smolact.robots.feetech import packets
from smolact.robots.feetech.packets import Instruction
from smolact.robots.so_arm.calibration import JointUnit, MotorCalibration
from tests.robots.so101_session import conversions

pytestmark = [
    pytest.mark.lerobot,
    pytest.mark.skipif(
        "SMOLACT_LEROBOT_PYTHON" not in os.environ,
        reason="set SMOLACT_LEROBOT_PYTHON to a Python that has LeRobot 0.6.1 with its extra feetech",
    ),
]
ATTEMPTS = 5
"""LeRobot repeats no request at connection: on a busy machine, simulated motors may be too slow for it."""


def lerobot(output: Path, *arguments: str, script: str = "so101_session.py") -> Path:
    path = Path(__file__).with_name(script)
    command = [os.environ["SMOLACT_LEROBOT_PYTHON"], "-W", "ignore", str(path), str(output), *arguments]
    for _ in range(ATTEMPTS):
        ran = subprocess.run(
            command,
            capture_output=True,
            text=True,
            env={"PATH": os.environ["PATH"], "HF_HUB_OFFLINE": "1"},
            check=False,
        )
        if ran.returncode == 0:
            return output
    pytest.fail(ran.stderr[-3000:])


def test_the_recorded_session_is_what_lerobot_does(tmp_path: Path) -> None:
    recorded = json.loads(Path(__file__).with_name("so101_lerobot.json").read_text())
    anew: dict[str, Any] = json.loads(lerobot(tmp_path / "session.json").read_text())
    assert anew == recorded


def test_the_recorded_flags_are_lerobots(tmp_path: Path) -> None:
    command = [os.environ["SMOLACT_LEROBOT_PYTHON"], "-c", "import lerobot.datasets"]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("lerobot-record needs LeRobot's extra dataset")
    recorded = Path(__file__).with_name("lerobot_flags.json").read_text()
    assert lerobot(tmp_path / "flags.json", script="lerobot_flags.py").read_text() == recorded


def test_a_million_values_are_converted_as_lerobot_converts_them(tmp_path: Path) -> None:
    count = 1_000_000
    theirs = np.load(lerobot(tmp_path / "units.npy", "units", str(count)))
    ours = np.empty((count, 2))
    for at, (entry, unit, steps, value) in enumerate(conversions(count, seed=1)):
        motor, mode = MotorCalibration(**entry), JointUnit(unit)
        ours[at] = motor.to_unit(steps, mode), motor.to_steps(value, mode)
    np.testing.assert_array_equal(ours, theirs)


def test_requests_are_the_sdks(tmp_path: Path) -> None:
    found = json.loads(lerobot(tmp_path / "sdk.json", "sdk").read_text())
    assert found == [
        packet.hex(" ")
        for packet in (
            packets.request(3, Instruction.READ, bytes([56, 2])),
            packets.request(3, Instruction.WRITE, bytes([42, *(2100).to_bytes(2, "little")])),
            packets.request(6, Instruction.WRITE, bytes([40, 1])),
            packets.sync_read(56, 2, range(1, 7)),
            packets.sync_write(42, 2, {number: 2048 + number for number in range(1, 7)}),
        )
    ]

"""The adapter over LeRobot's real classes. Needs an interpreter that has LeRobot 0.6.1 with its motors' packages."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

import smolact


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("lerobot")
    script = Path(__file__).with_name("lerobot_arm.py")
    ran = subprocess.run(
        [os.environ["SMOLACT_LEROBOT_PYTHON"], "-W", "ignore", str(script), str(folder)],
        capture_output=True,
        text=True,
        env={
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": str(folder / "hf"),
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(Path(smolact.__file__).parents[1]),
        },
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    return dict(json.loads(ran.stdout.splitlines()[-1]))


pytestmark = [
    pytest.mark.lerobot,
    pytest.mark.skipif(
        "SMOLACT_LEROBOT_PYTHON" not in os.environ,
        reason="set SMOLACT_LEROBOT_PYTHON to a Python that has LeRobot 0.6.1 with its extras feetech and dynamixel",
    ),
]


def test_names_and_order_are_those_that_lerobot_record_stores(found: dict[str, Any]) -> None:
    agree = found["features"]
    assert {
        agree[name]
        for name in ("so100_follower", "so101_follower", "koch_follower", "bi_so_follower", "lekiwi")
    } == {True}
    assert False not in agree.values()  # the others need packages or hardware to be made


def test_an_observation_is_what_lerobot_record_stores(found: dict[str, Any]) -> None:
    assert found["observation as stored by lerobot-record"]
    assert found["elbow"] == pytest.approx(512 * 360 / 4095)
    assert found["picture"] == [255, 0, 0]
    assert found["camera is young"]


def test_limits_come_from_the_calibration(found: dict[str, Any]) -> None:
    quarter = 1024 * 360 / 4095
    assert found["limits"] == [pytest.approx([-quarter] * 5 + [0]), pytest.approx([quarter] * 5 + [100])]


def test_nothing_refused_is_written_and_what_passes_is(found: dict[str, Any]) -> None:
    assert [error.partition(":")[0] for error in found["refused"]] == ["UnsafeActionError"] * 3
    assert found["goals before"] == [None] * 6
    assert found["goals"] == [2048, 2048, int(22.5 * 4095 / 360) + 2048, 2048, 2048, 3072]


def test_the_leader_is_followed_a_step_at_a_time(found: dict[str, Any]) -> None:
    assert found["followed"] == [30.0, 60.0, 90.0, 90.02]


def test_errors_say_what_to_do_and_leave_nothing_open(found: dict[str, Any]) -> None:
    assert "is not calibrated" in found["uncalibrated"] and "smolact robot calibrate" in found["uncalibrated"]
    assert found["closed after it"] and found["closed after the cable"]
    assert "no status packet! Is it plugged in and powered?" in found["cable"]
    assert found["camera"].startswith("RobotError") and "Camera 'front' did not open." in found["camera"]

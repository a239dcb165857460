"""A follower of the calibration that simulated arms have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from smolact.registry import ROBOTS
from smolact.robots.factory import make_robot
from smolact.robots.so_arm.follower import SOFollower


def follower(port: str | Path, folder: Path, **settings: Any) -> SOFollower:
    """Return a follower without a largest step, not connected; `folder` has its calibration."""
    robot = make_robot(
        "so101_follower",
        ROBOTS,
        port=str(port),
        id="black",
        calibration_dir=folder,
        max_step=0,
        **settings,
    )
    assert isinstance(robot, SOFollower)
    return robot

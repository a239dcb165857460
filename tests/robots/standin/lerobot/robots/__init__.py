from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import draccus


@dataclass(kw_only=True)
class RobotConfig(draccus.ChoiceRegistry):
    id: str | None = None
    calibration_dir: Path | None = None

    def __post_init__(self) -> None:
        for camera in getattr(self, "cameras", {}).values():
            if None in (camera.width, camera.height, camera.fps):
                raise ValueError("Specifying 'width' is required for the camera to be used in a robot")


def make_robot_from_config(config: Any) -> Any:
    from lerobot.robots import so_follower

    if isinstance(config, so_follower.SOFollowerRobotConfig):
        return so_follower.SOFollower(config)
    try:
        raise ImportError("'some-sdk' is required but not installed.")
    except ImportError as error:
        raise ValueError(f"Error creating robot with config {config}: {error}") from error

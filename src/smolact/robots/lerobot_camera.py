"""A camera with a LeRobot driver, as one of `smolact.robots.cameras`."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smolact.errors import RobotError
from smolact.robots.base import CameraTimeoutError
from smolact.robots.lerobot_drivers import translated


class LeRobotCamera:
    """A camera with a LeRobot driver, such as `intelrealsense`. Raises `RobotError` as `Camera` says."""

    def __init__(self, name: str, driver: Any) -> None:
        self.name, self._driver = name, driver

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of its pictures."""
        return int(self._driver.height), int(self._driver.width)

    @property
    def age(self) -> float:
        """Seconds since the newest picture; 0 for drivers that do not say."""
        taken = getattr(self._driver, "latest_timestamp", None)
        return 0.0 if taken is None else time.perf_counter() - float(taken)

    def connect(self) -> None:
        """Open the camera."""
        with translated(f"camera '{self.name}'", "Is something else using it?"):
            self._driver.connect()

    def read(self) -> NDArray[np.uint8]:
        """Return the newest picture, (H, W, 3) uint8."""
        try:
            with translated(f"camera '{self.name}'", "Is it plugged in?"):
                image: NDArray[np.uint8] = np.asarray(self._driver.read_latest(), np.uint8)
        except RobotError as error:
            raise CameraTimeoutError(str(error)) from error
        return image

    def disconnect(self) -> None:
        """Close the camera."""
        with contextlib.suppress(Exception):  # drivers raise when it is closed already
            self._driver.disconnect()

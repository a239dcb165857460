"""Cameras that answer, and one picture of each: through PyAV, and RealSense cameras through LeRobot's driver."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from smolact.errors import ConfigError, MissingDependencyError, RobotError
from smolact.robots.cameras import FORMATS, OPEN_TIMEOUT_S, CameraSettings, Image, devices
from smolact.robots.ports import cameras_present

ID_FIELDS = {"opencv": "index_or_path", "intelrealsense": "serial_number_or_name"}
ADJUSTMENT_FRAMES = 10
"""Pictures in which a camera adjusts its exposure."""


@dataclasses.dataclass(frozen=True)
class FoundCamera:
    """A camera that answers.

    Attributes:
        type: `opencv` or `intelrealsense`.
        id: path, name or serial number.
        width, height, fps: defaults of the camera; None if unknown.
    """

    type: str
    id: str
    width: int | None = None
    height: int | None = None
    fps: float | None = None

    def setting(self, name: str) -> str:
        """Return the entry of `--robot.cameras`, with the camera's own size and rate."""
        size = f"width: {self.width or 640}, height: {self.height or 480}, fps: {round(self.fps or 30)}"
        return f'{name}: {{type: {self.type}, {ID_FIELDS[self.type]}: "{self.id}", {size}}}'


def find_cameras(
    kind: str | None = None, on_skip: Callable[[str], None] = lambda reason: None
) -> list[tuple[FoundCamera, Image]]:
    """Return the cameras that answer, with a picture (H, W, 3) uint8 of each.

    Args:
        kind: `opencv` or `intelrealsense`; None for both, as far as the packages are installed.
        on_skip: called with the reason why a device or kind is skipped.

    Raises:
        ConfigError: the kind is unknown.
        RobotError: no camera answers.
        MissingDependencyError: a package of the requested kind is not installed.
    """
    if kind is not None and kind not in ID_FIELDS:
        raise ConfigError(f"Cameras that can be looked for are {' and '.join(ID_FIELDS)}, found '{kind}'.")
    found: list[tuple[FoundCamera, Image]] = []
    if kind != "intelrealsense":
        for path, _ in devices():
            try:
                found.append(look(path))
            except RobotError as error:  # such as the second device of a camera, which has no pictures
                on_skip(str(error))
    if kind == "intelrealsense" or (kind is None and _has_realsense()):
        found += _find_realsense()
    if not found:
        raise RobotError(
            f"No camera answers. {cameras_present()} Plug one in, close what else uses it, and see that you may read it "
            "(on Linux: the group 'video')."
        )
    return found


def look(path: str) -> tuple[FoundCamera, Image]:
    """Open a camera with its own settings and take a picture.

    Raises:
        RobotError: it gives no picture.
    """
    import platform

    import av

    address, form, _ = CameraSettings(index_or_path=path, width=1, height=1).source
    try:
        with av.open(
            address, format=form or FORMATS.get(platform.system()), timeout=(OPEN_TIMEOUT_S, OPEN_TIMEOUT_S)
        ) as device:
            stream = device.streams.video[0]
            stream.thread_type = "NONE"
            *_, frame = itertools.islice(device.decode(stream), ADJUSTMENT_FRAMES)
            rate = float(stream.average_rate) if stream.average_rate else None
            image = frame.to_ndarray(format="rgb24")
    except (av.FFmpegError, OSError, ValueError, IndexError) as error:
        raise RobotError(f"{path} gives no picture: {error}.") from error
    return FoundCamera("opencv", path, image.shape[1], image.shape[0], rate), image


def _has_realsense() -> bool:
    from smolact.robots.lerobot_drivers import is_installed

    return is_installed() and importlib.util.find_spec("pyrealsense2") is not None


def _find_realsense() -> list[tuple[FoundCamera, Image]]:
    from smolact.robots.lerobot_drivers import load, translated

    if not _has_realsense():
        load("lerobot.cameras")
        raise MissingDependencyError(
            "Cameras of type intelrealsense need the package 'pyrealsense2', which is not installed. If you have one, run: "
            "pip install 'lerobot[intelrealsense]'"
        )
    module = load("lerobot.cameras.realsense")
    found = []
    with translated("search for intelrealsense cameras"):
        for details in module.RealSenseCamera.find_cameras():
            profile: dict[str, Any] = details.get("default_stream_profile") or {}
            camera = module.RealSenseCamera(module.RealSenseCameraConfig(serial_number_or_name=details["id"]))
            camera.connect()
            try:
                image = np.asarray(camera.async_read(timeout_ms=2000), np.uint8)
            finally:
                camera.disconnect()
            size = profile.get("width"), profile.get("height"), profile.get("fps")
            found.append((FoundCamera("intelrealsense", str(details["id"]), *size), image))
    return found

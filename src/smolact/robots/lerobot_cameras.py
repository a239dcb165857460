"""Cameras that LeRobot's drivers find, and one image of each."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smolact.errors import ConfigError, MissingDependencyError, RobotError
from smolact.robots.lerobot_drivers import load, translated
from smolact.robots.ports import cameras_present


@dataclasses.dataclass(frozen=True)
class FoundCamera:
    """A camera that answers.

    Attributes:
        type: LeRobot's camera type.
        id: index, path or serial number.
        width, height, fps: defaults of the camera; None if unknown.
    """

    type: str
    id: str | int
    width: int | None = None
    height: int | None = None
    fps: float | None = None

    def setting(self, name: str) -> str:
        """Return the entry of `--robot.cameras`, with the camera's own size and rate."""
        key = _KINDS[self.type].id_field
        size = f"width: {self.width or 640}, height: {self.height or 480}, fps: {round(self.fps or 30)}"
        return f"{name}: {{type: {self.type}, {key}: {self.id}, {size}}}"


@dataclasses.dataclass(frozen=True)
class _CameraKind:
    module: str
    camera: str
    config: str
    id_field: str
    package: str | None = None


_KINDS = {
    "opencv": _CameraKind("lerobot.cameras.opencv", "OpenCVCamera", "OpenCVCameraConfig", "index_or_path"),
    "intelrealsense": _CameraKind(
        "lerobot.cameras.realsense",
        "RealSenseCamera",
        "RealSenseCameraConfig",
        "serial_number_or_name",
        "pyrealsense2",
    ),
}


def find_cameras(
    kind: str | None = None, on_skip: Callable[[str], None] = lambda reason: None
) -> list[FoundCamera]:
    """Return the cameras that answer.

    Args:
        kind: `opencv` or `intelrealsense`; None for all whose packages are installed.
        on_skip: called with the reason of a skipped kind.

    Raises:
        ConfigError: the kind is unknown.
        RobotError: no camera answers.
        MissingDependencyError: LeRobot, or a package of the requested kind, is not installed.
    """
    if kind is not None and kind not in _KINDS:
        raise ConfigError(f"Cameras that can be looked for are {' and '.join(_KINDS)}, found '{kind}'.")
    cameras = []
    for name in [kind] if kind else list(_KINDS):
        try:
            _require_package(name)
            with translated(f"search for {name} cameras"):
                cameras += [_to_found_camera(name, details) for details in _camera_class(name).find_cameras()]
        except MissingDependencyError as error:
            if kind is not None or name == "opencv":
                raise
            on_skip(str(error))
    if not cameras:
        raise RobotError(
            f"No camera answers. {cameras_present()} Plug one in, close what else uses it, and see that you may read it "
            "(on Linux: the group 'video')."
        )
    return cameras


def take_picture(camera: FoundCamera) -> NDArray[np.uint8]:
    """Take one image, (H, W, 3) uint8 RGB.

    Raises:
        RobotError: the camera returns no image.
    """
    kind = _KINDS[camera.type]
    with translated(f"camera {camera.id}", "Is something else using it?"):
        config = getattr(load(kind.module), kind.config)(**{kind.id_field: camera.id})
        device = _camera_class(camera.type)(config)
        device.connect()
        try:
            image: NDArray[np.uint8] = np.asarray(device.async_read(timeout_ms=2000), np.uint8)
        finally:
            device.disconnect()
    return image


def _require_package(name: str) -> None:
    package = _KINDS[name].package
    load("lerobot.cameras")
    if package is not None and importlib.util.find_spec(package) is None:
        raise MissingDependencyError(
            f"Cameras of type {name} need the package '{package}', which is not installed. "
            f"If you have one, run: pip install 'lerobot[{name}]'"
        )


def _camera_class(name: str) -> Any:
    return getattr(load(_KINDS[name].module), _KINDS[name].camera)


def _to_found_camera(name: str, details: dict[str, Any]) -> FoundCamera:
    profile = details.get("default_stream_profile") or {}
    return FoundCamera(name, details["id"], profile.get("width"), profile.get("height"), profile.get("fps"))

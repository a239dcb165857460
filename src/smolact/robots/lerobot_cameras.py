"""The cameras that LeRobot's drivers find, and one picture of each."""

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
        type: LeRobot's type of it.
        id: index, path or serial number.
        width, height, fps: what it gives unless it is asked for something else; None where it does not say.
    """

    type: str
    id: str | int
    width: int | None = None
    height: int | None = None
    fps: float | None = None

    def setting(self, name: str) -> str:
        """What to write in `--robot.cameras`, with the camera's own size and rate."""
        key = _KINDS[self.type].id_field
        size = f"width: {self.width or 640}, height: {self.height or 480}, fps: {round(self.fps or 30)}"
        return f"{name}: {{type: {self.type}, {key}: {self.id}, {size}}}"


@dataclasses.dataclass(frozen=True)
class _CameraKind:
    module: str
    camera: str
    config: str
    id_field: str
    needs: str | None = None


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
    kind: str | None = None, on_skip: Callable[[str], None] = lambda why: None
) -> list[FoundCamera]:
    """The cameras that answer.

    Args:
        kind: `opencv` or `intelrealsense`; None looks for both, and passes over one whose package is not installed.
        on_skip: told why a kind was passed over.

    Raises:
        ConfigError: another kind.
        RobotError: there is none.
        MissingDependencyError: LeRobot, or what the asked kind needs, is not installed.
    """
    if kind is not None and kind not in _KINDS:
        raise ConfigError(f"Cameras that can be looked for are {' and '.join(_KINDS)}, found '{kind}'.")
    found = []
    for name in [kind] if kind else list(_KINDS):
        try:
            _needs(name)
            with translated(f"search for {name} cameras"):
                found += [_found(name, one) for one in _load(name).find_cameras()]
        except MissingDependencyError as error:
            if kind is not None or name == "opencv":
                raise
            on_skip(str(error))
    if not found:
        raise RobotError(
            f"No camera answers. {cameras_present()} Plug one in, close what else uses it, and see that you may read it "
            "(on Linux: the group 'video')."
        )
    return found


def take_picture(camera: FoundCamera) -> NDArray[np.uint8]:
    """One picture, (H, W, 3) uint8 RGB.

    Raises:
        RobotError: it gives none.
    """
    kind = _KINDS[camera.type]
    with translated(f"camera {camera.id}", "Is something else using it?"):
        config = getattr(load(kind.module), kind.config)(**{kind.id_field: camera.id})
        device = _load(camera.type)(config)
        device.connect()
        try:
            picture: NDArray[np.uint8] = np.asarray(device.async_read(timeout_ms=2000), np.uint8)
        finally:
            device.disconnect()
    return picture


def _needs(name: str) -> None:
    package = _KINDS[name].needs
    load("lerobot.cameras")
    if package is not None and importlib.util.find_spec(package) is None:
        raise MissingDependencyError(
            f"Cameras of type {name} need the package '{package}', which is not installed. "
            f"If you have one, run: pip install 'lerobot[{name}]'"
        )


def _load(name: str) -> Any:
    return getattr(load(_KINDS[name].module), _KINDS[name].camera)


def _found(name: str, told: dict[str, Any]) -> FoundCamera:
    profile = told.get("default_stream_profile") or {}
    return FoundCamera(name, told["id"], profile.get("width"), profile.get("height"), profile.get("fps"))

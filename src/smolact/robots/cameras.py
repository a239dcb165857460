"""Cameras through PyAV, with the settings of LeRobot's `opencv` cameras; LeRobot's drivers read every other type.

A camera is read in a thread, and `read` returns its newest picture. Linux reads through v4l2, macOS through avfoundation,
Windows through dshow; a file, an address or `lavfi:GRAPH` (FFmpeg's test pictures) is read as FFmpeg reads it.
"""

from __future__ import annotations

import contextlib
import logging
import platform
import threading
import time
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from smolact.errors import ConfigError, RobotError, SmolactError, did_you_mean
from smolact.robots.base import CameraTimeoutError
from smolact.robots.ports import cameras_present, video_devices

TOO_OLD_S = 1.0
"""The age from which a picture is refused. The control loop waits for pictures that are older than 0.2 s."""
OPEN_TIMEOUT_S = 5.0
FOURCC = {"MJPG": "mjpeg", "YUYV": "yuyv422", "UYVY": "uyvy422", "NV12": "nv12", "H264": "h264"}
FORMATS = {"Linux": "v4l2", "Darwin": "avfoundation", "Windows": "dshow"}
EXAMPLE = "{front: {type: opencv, index_or_path: 0, width: 640, height: 480, fps: 30}}"

logger = logging.getLogger(__name__)

Image = NDArray[np.uint8]


class Camera(Protocol):
    """A camera of a robot."""

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of its pictures, known before `connect`."""
        ...

    @property
    def age(self) -> float:
        """Seconds since the newest picture; infinite before the first."""
        ...

    def connect(self) -> None:
        """Open the camera and wait for its first picture.

        Raises:
            RobotError: it does not open, or gives other pictures than it should.
        """
        ...

    def read(self) -> Image:
        """Return the newest picture, (H, W, 3) uint8.

        Raises:
            CameraTimeoutError: the newest picture is older than `TOO_OLD_S`, or the camera failed.
        """
        ...

    def disconnect(self) -> None:
        """Close the camera. May be called at any time, more than once."""
        ...


@dataclass(frozen=True, kw_only=True)
class CameraSettings:
    """Settings of a camera of type `opencv`, by LeRobot's names.

    Attributes:
        index_or_path: the camera's number, or its path or name (`/dev/video2`).
        fps: pictures a second.
        width, height: the size of the pictures that are returned, after `rotation`.
        color_mode: `rgb` or `bgr`.
        rotation: 0, 90, 180 or -90 degrees, clockwise.
        warmup_s: how long the first pictures are thrown away, in which a camera adjusts itself.
        fourcc: the camera's own format, such as MJPG; None for its default.
        backend: OpenCV's number of a backend; read for LeRobot's sake and without effect.
    """

    index_or_path: int | str
    width: int
    height: int
    fps: int = 30
    color_mode: str = "rgb"
    rotation: int = 0
    warmup_s: float = 1.0
    fourcc: str | None = None
    backend: int = 0

    def __post_init__(self) -> None:
        """Check the values."""
        for name in ("width", "height", "fps"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} is {value!r}: expected a whole number above 0")
        if self.color_mode not in ("rgb", "bgr"):
            raise ConfigError(f"color_mode is {self.color_mode!r}: expected rgb or bgr")
        if self.rotation not in (0, 90, 180, -90):
            raise ConfigError(f"rotation is {self.rotation!r}: expected 0, 90, 180 or -90")
        if self.fourcc is not None and self.fourcc not in list(FOURCC):
            raise ConfigError(f"fourcc is {self.fourcc!r}: expected one of {', '.join(FOURCC)}")
        if not isinstance(self.warmup_s, (int, float)) or self.warmup_s < 0:
            raise ConfigError(f"warmup_s is {self.warmup_s}: expected seconds, 0 or more")

    @property
    def source(self) -> tuple[str, str | None, dict[str, str]]:
        """The address, format and options for `av.open`."""
        path = str(self.index_or_path)
        if path.startswith("lavfi:"):
            return path.removeprefix("lavfi:"), "lavfi", {}
        is_number = path.lstrip("-").isdigit()
        device = FORMATS.get(platform.system())
        is_device = is_number or path.startswith("/dev/") or device in ("avfoundation", "dshow")
        if "://" in path or not is_device or device is None:
            return path, None, {}
        turned = self.rotation in (90, -90)
        width, height = (self.height, self.width) if turned else (self.width, self.height)
        options = {"video_size": f"{width}x{height}", "framerate": str(self.fps)}
        if device == "v4l2":
            options |= {"input_format": FOURCC[self.fourcc]} if self.fourcc else {}
            return (f"/dev/video{path}" if is_number else path), device, options
        if device == "avfoundation":
            return f"{path}:none", device, options
        return (
            f"video={_dshow_name(int(path)) if is_number else path}",
            device,
            options | {"rtbufsize": "100M"},
        )


def _dshow_name(number: int) -> str:
    """Return the name of a camera on Windows, where FFmpeg knows no numbers."""
    names = [name for name, _ in devices()]
    if not 0 <= number < len(names):
        raise RobotError(f"There is no camera {number}; Windows lists: {', '.join(names) or 'none'}.")
    return names[number]


def devices() -> list[tuple[str, str]]:
    """Return the cameras that the system lists: what `index_or_path` takes, and a description."""
    import av

    system = platform.system()
    if system == "Linux":
        return [(path, "") for path in video_devices()]
    enumerate_devices = getattr(av, "enumerate_input_devices", None)  # PyAV 17 and later
    if enumerate_devices is None or system not in FORMATS:
        return []
    found = enumerate_devices(FORMATS[system])
    return [(str(device.name), str(device.description)) for device in found if "video" in device.media_types]


class AVCamera:
    """A camera, read in a thread through PyAV.

    Args:
        name: its name in messages.
        settings: its settings.
    """

    def __init__(self, name: str, settings: CameraSettings) -> None:
        self.name, self.settings = name, settings
        self._container: Any = None
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._fresh = threading.Condition()
        self._frame: Any = None
        self._taken_at = float("-inf")
        self._failure: str | None = None
        self.pictures = self.refused = 0

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of its pictures."""
        return self.settings.height, self.settings.width

    @property
    def age(self) -> float:
        """Seconds since the newest picture; infinite before the first."""
        return time.perf_counter() - self._taken_at

    def connect(self) -> None:
        """Open the camera, wait for its first picture and for `warmup_s`.

        Raises:
            RobotError: it does not open, gives no picture, or pictures of another size or rate.
        """
        if self._thread is not None:
            return
        import av

        address, form, options = self.settings.source
        try:
            self._container = av.open(address, format=form, options=options, timeout=OPEN_TIMEOUT_S)
            stream = self._container.streams.video[0]
        except (av.FFmpegError, OSError, ValueError, IndexError) as error:
            self.disconnect()
            raise RobotError(self._cannot_open(error)) from error
        try:
            self._check_rate(stream)
            self._stop.clear()
            self._failure, self._taken_at = None, float("-inf")
            self._thread = threading.Thread(
                target=self._run, args=(stream,), name=f"camera {self.name}", daemon=True
            )
            self._thread.start()
            self._wait_for_first()
            time.sleep(self.settings.warmup_s)
            self.read()
        except BaseException:
            self.disconnect()
            raise

    def read(self) -> Image:
        """Return the newest picture, (H, W, 3) uint8.

        Raises:
            CameraTimeoutError: the newest picture is older than `TOO_OLD_S`, or the camera failed.
            RobotError: its pictures have another size than they should.
        """
        with self._fresh:
            frame, failure, age = self._frame, self._failure, self.age
        if frame is None or failure is not None or age > TOO_OLD_S:
            self.refused += 1
            reason = failure or (f"its newest picture is {age:.1f} s old" if frame else "it is not connected")
            raise CameraTimeoutError(
                f"The camera '{self.name}' gives no new picture: {reason}. See to its cable."
            )
        image: Image = frame.to_ndarray(format="rgb24" if self.settings.color_mode == "rgb" else "bgr24")
        turns = {0: 0, 90: -1, 180: 2, -90: 1}[self.settings.rotation]
        image = np.ascontiguousarray(np.rot90(image, turns)) if turns else image
        if image.shape[:2] != self.shape:
            height, width = image.shape[:2]
            raise RobotError(
                f"The camera '{self.name}' gives pictures of {width}×{height} and should give {self.settings.width}×{self.settings.height}. "
                "Set width and height to a size that it has: smolact robot find-cameras."
            )
        return image

    def disconnect(self) -> None:
        """Close the camera. May be called at any time, more than once."""
        self._stop.set()
        thread, self._thread = self._thread, None
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout=OPEN_TIMEOUT_S)
        if self.refused:
            logger.warning("The camera '%s' had no new picture %d times.", self.name, self.refused)
            self.refused = 0
        container, self._container = self._container, None
        if thread is not None and thread.is_alive():
            logger.warning(
                "The camera '%s' does not stop; it is left open until this process ends.", self.name
            )
        elif container is not None:
            with contextlib.suppress(OSError):
                container.close()
        self._frame = None

    def _run(self, stream: Any) -> None:
        """Decode until stopped. A picture is converted where it is read, so none is converted for nothing."""
        stream.thread_type = "NONE"  # threads would delay each picture by several
        try:
            for frame in self._container.decode(stream):
                if self._stop.is_set():
                    return
                with self._fresh:
                    self._frame, self._taken_at = frame, time.perf_counter()
                    self.pictures += 1
                    self._fresh.notify_all()
            failure = "it has ended"
        except Exception as error:  # whatever FFmpeg raises: nothing else would see it in this thread
            failure = f"{error}"
        with self._fresh:
            self._failure = failure
            self._fresh.notify_all()

    def _wait_for_first(self) -> None:
        with self._fresh:
            came = self._fresh.wait_for(
                lambda: self._frame is not None or self._failure is not None, OPEN_TIMEOUT_S
            )
            failure = self._failure if came else f"no picture came within {OPEN_TIMEOUT_S:g} s"
        if failure is not None:
            raise RobotError(f"The camera '{self.name}' opened, and then failed: {failure}.")

    def _check_rate(self, stream: Any) -> None:
        rate = stream.average_rate or stream.guessed_rate
        if rate and abs(float(rate) - self.settings.fps) > 0.01 * self.settings.fps:
            raise RobotError(
                f"The camera '{self.name}' gives {float(rate):g} pictures a second and should give {self.settings.fps}. Set fps to "
                "what it has, or another size, or fourcc: MJPG, with which cameras are quicker."
            )

    def _cannot_open(self, error: Exception) -> str:
        advice = (
            "Does it have this width, height and fps, and does nothing else use it?"
            if getattr(error, "errno", None) != 2
            else "It is not there."
        )
        return (
            f"The camera '{self.name}' (index_or_path {self.settings.index_or_path}) can't be opened: {error}. {advice} "
            f"{cameras_present()} `smolact robot find-cameras` lists what answers."
        )


def connect_cameras(cameras: Collection[Camera]) -> None:
    """Connect cameras side by side, since each one takes about a second.

    Raises:
        RobotError: some do not open; the message has the error of each.
        MissingDependencyError: a package of a driver is not installed.
    """
    with ThreadPoolExecutor(max(1, len(cameras))) as threads:
        started = [threads.submit(camera.connect) for camera in cameras]
        errors = [error for each in started if (error := each.exception()) is not None]
    for error in errors:
        if len(errors) == 1 or not isinstance(error, RobotError):
            raise error
    if errors:
        raise RobotError("\n".join(map(str, errors)))


def make_cameras(settings: Mapping[str, Any], flag: str) -> dict[str, Camera]:
    """Make cameras, not connected.

    Args:
        settings: the settings of each camera, by name; see `CameraSettings`.
        flag: the flag that they come from, for messages.

    Raises:
        ConfigError: an unknown type or setting, or an invalid value.
        MissingDependencyError: the type is LeRobot's, and LeRobot is not installed.
    """
    if not isinstance(settings, Mapping):
        raise ConfigError(f'{flag} is cameras by name, such as "{EXAMPLE}", found {settings!r}.')
    return {str(name): _make_camera(str(name), entry, flag) for name, entry in settings.items()}


def _make_camera(name: str, entry: Any, flag: str) -> Camera:
    if not isinstance(entry, Mapping) or "type" not in entry:
        raise ConfigError(f"Camera '{name}' of {flag} needs a type, such as {EXAMPLE}, found {entry!r}.")
    if "." in name or not name.strip():
        raise ConfigError(f"'{name}' of {flag} can't name a camera: it becomes observation.images.NAME.")
    values = {str(key): value for key, value in entry.items() if key != "type"}
    if entry["type"] != "opencv":
        from smolact.robots.lerobot_camera import LeRobotCamera
        from smolact.robots.lerobot_drivers import make_camera

        return LeRobotCamera(name, make_camera(str(entry["type"]), values, f"{flag}.{name}."))
    known = [field.name for field in fields(CameraSettings)]
    for key in values:
        if key not in known:
            raise ConfigError(
                f"A camera of type 'opencv' has no setting {flag}.{name}.{key}.{did_you_mean(key, known)} It has: {', '.join(known)}."
            )
    for key in ("index_or_path", "width", "height"):
        if values.get(key) is None:
            raise ConfigError(
                f"Camera '{name}' needs {flag}.{name}.{key}: `smolact robot find-cameras` shows each camera and what it gives."
            )
    try:
        return AVCamera(
            name, CameraSettings(**{key: value for key, value in values.items() if value is not None})
        )
    except SmolactError as error:
        raise ConfigError(f"{flag}.{name}.{error}.") from error

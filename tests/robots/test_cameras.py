"""Cameras on FFmpeg's test pictures, which arrive in real time as a camera's do."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from smolact.errors import ConfigError, RobotError
from smolact.robots import cameras, find_cameras
from smolact.robots.base import CameraTimeoutError
from smolact.robots.cameras import AVCamera, CameraSettings, make_cameras
from smolact.robots.lerobot_camera import LeRobotCamera

PICTURE = "lavfi:testsrc=size=64x48:rate=30,realtime"


def camera(**settings: Any) -> AVCamera:
    made = make_cameras(
        {
            "front": {
                "type": "opencv",
                "index_or_path": PICTURE,
                "width": 64,
                "height": 48,
                "warmup_s": 0,
                **settings,
            }
        },
        "--robot.cameras",
    )["front"]
    assert isinstance(made, AVCamera)
    return made


def test_the_newest_picture_is_read() -> None:
    device = camera()
    assert device.shape == (48, 64)
    device.connect()
    try:
        first = device.read()
        assert first.shape == (48, 64, 3) and first.dtype == np.uint8 and first.flags.c_contiguous
        seen = device.pictures
        wait_for(lambda: device.pictures > seen + 5)
        assert device.age < 0.5
    finally:
        device.disconnect()
        device.disconnect()
    with pytest.raises(RobotError, match="is not connected"):
        device.read()


@pytest.mark.parametrize(("rotation", "turns"), [(90, -1), (180, 2), (-90, 1)])
def test_pictures_are_turned_as_lerobot_turns_them(rotation: int, turns: int) -> None:
    still = "lavfi:testsrc=size=64x48:rate=30:decimals=0,trim=end_frame=1,loop=-1:1,realtime"
    straight, turned = (
        camera(index_or_path=still),
        camera(
            index_or_path=still, rotation=rotation, **({} if rotation == 180 else {"width": 48, "height": 64})
        ),
    )
    bgr = camera(index_or_path=still, color_mode="bgr")
    for device in (straight, turned, bgr):
        device.connect()
    try:
        picture = straight.read()
        np.testing.assert_array_equal(turned.read(), np.rot90(picture, turns))
        np.testing.assert_array_equal(bgr.read(), picture[..., ::-1])
    finally:
        for device in (straight, turned, bgr):
            device.disconnect()


def test_an_old_picture_is_refused_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    device = camera()
    device.connect()
    try:
        monkeypatch.setattr(cameras, "TOO_OLD_S", -1.0)
        with pytest.raises(
            RobotError, match="The camera 'front' gives no new picture: its newest picture is"
        ):
            device.read()
        assert device.refused == 1
    finally:
        device.disconnect()


def test_a_camera_that_ends_says_so() -> None:
    device = camera(index_or_path="lavfi:testsrc=size=64x48:rate=30:duration=0.2,realtime")
    device.connect()
    try:
        wait_for(lambda: device._failure is not None)
        with pytest.raises(RobotError, match=r"it has ended\. See to its cable"):
            device.read()
    finally:
        device.disconnect()


def test_a_camera_of_lerobot_that_fails_ends_a_recording_as_others_do(lerobot: None) -> None:
    from lerobot.devices import Camera  # type: ignore[import-not-found]

    device = LeRobotCamera("front", Camera(48, 64, "frozen"))
    device.connect()
    with pytest.raises(CameraTimeoutError, match="camera 'front' failed: latest frame is too old"):
        device.read()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 32}, "gives pictures of 64×48 and should give 32×48"),
        ({"fps": 25}, "gives 30 pictures a second and should give 25"),
        (
            {"index_or_path": "/dev/video99"},
            r"\(index_or_path /dev/video99\) can't be opened: .* It is not there",
        ),
        ({"index_or_path": 99}, r"\(index_or_path 99\) can't be opened"),
    ],
)
def test_a_camera_that_does_not_fit_is_an_error_at_connection(settings: dict[str, Any], message: str) -> None:
    device = camera(**settings)
    with pytest.raises(RobotError, match=message):
        device.connect()


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ([1], "is cameras by name, such as"),
        ({"front": {}}, r"Camera 'front' of --robot.cameras needs a type"),
        ({"a.b": {"type": "opencv"}}, "can't name a camera"),
        ({"front": {"type": "opencv"}}, r"needs --robot.cameras.front.index_or_path"),
        ({"front": {"type": "opencv", "index_or_path": 0}}, r"needs --robot.cameras.front.width"),
        ({"front": {"type": "opencv", "widht": 3}}, r"--robot.cameras.front.widht. Did you mean 'width'"),
        ({"front": {"type": "opencv", "index_or_path": 0, "width": 0, "height": 4}}, "front.width is 0"),
        (
            {"front": {"type": "opencv", "index_or_path": 0, "width": 4, "height": 4, "rotation": 45}},
            "front.rotation is 45: expected 0, 90, 180 or -90",
        ),
        (
            {"front": {"type": "opencv", "index_or_path": 0, "width": 4, "height": 4, "fourcc": "XXXX"}},
            "front.fourcc is 'XXXX': expected one of MJPG",
        ),
    ],
)
def test_wrong_settings_are_told_with_their_flag(entry: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_cameras(entry, "--robot.cameras")


@pytest.mark.parametrize(
    ("system", "index", "expected"),
    [
        ("Linux", 2, ("/dev/video2", "v4l2")),
        ("Linux", "/dev/video4", ("/dev/video4", "v4l2")),
        ("Darwin", 0, ("0:none", "avfoundation")),
        ("Windows", "HD Webcam", ("video=HD Webcam", "dshow")),
        ("Linux", "rtsp://arm/stream", ("rtsp://arm/stream", None)),
        ("Linux", "film.mp4", ("film.mp4", None)),
    ],
)
def test_each_system_has_its_way_to_a_camera(
    system: str, index: int | str, expected: tuple[str, str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.system", lambda: system)
    settings = CameraSettings(index_or_path=index, width=480, height=640, rotation=90, fourcc="MJPG")
    address, form, options = settings.source
    assert (address, form) == expected
    if form is not None:
        assert options["video_size"] == "640x480" and options["framerate"] == "30"
        assert options.get("input_format") == ("mjpeg" if form == "v4l2" else None)


def test_cameras_are_found_with_a_picture_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(PICTURE, "the test picture"), ("/dev/video98", "metadata of it")]
    monkeypatch.setattr(find_cameras, "devices", lambda: found)
    skipped: list[str] = []
    ((device, picture),) = find_cameras.find_cameras("opencv", skipped.append)
    assert picture.shape == (48, 64, 3)
    assert device.setting("front") == (
        f'front: {{type: opencv, index_or_path: "{PICTURE}", width: 64, height: 48, fps: 30}}'
    )
    assert len(skipped) == 1 and "/dev/video98 gives no picture" in skipped[0]
    monkeypatch.setattr(find_cameras, "devices", list)
    with pytest.raises(RobotError, match="No camera answers"):
        find_cameras.find_cameras()
    with pytest.raises(ConfigError, match="opencv and intelrealsense, found 'webcam'"):
        find_cameras.find_cameras("webcam")


def wait_for(condition: Any, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("words", [["--type=opencv", "--output"], ["opencv", "--output-dir"]])
def test_pictures_are_saved_by_the_command(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from smolact.cli.main import main

    monkeypatch.setattr(find_cameras, "devices", lambda: [(PICTURE, "")])
    assert main(["robot", "find-cameras", *words, str(tmp_path)]) == 0
    assert "--robot.cameras='{camera0: {type: opencv" in capsys.readouterr().out
    (picture,) = tmp_path.glob("*.png")
    assert picture.read_bytes().startswith(b"\x89PNG")

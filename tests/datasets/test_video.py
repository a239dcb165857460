"""Frames by number: fast = slow, and damaged files are named."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from smolact.datasets.video import VideoReader, VideoWriter
from smolact.errors import ConfigError, VideoError, WriteError

COUNT = 24
DATA = Path(__file__).parent.parent / "parity" / "data"
REFERENCE = DATA / "dataset_v30/videos/observation.images.top/chunk-000/file-000.mp4"


def picture(number: int, height: int = 32, width: int = 48) -> NDArray[np.uint8]:
    image = np.full((height, width, 3), 10 * number, dtype=np.uint8)
    image[:8, number : number + 8] = (250, 20, 20)
    return image


def decode_in_order(path: Path) -> NDArray[np.uint8]:
    """The slow twin: every frame from the beginning, sorted as they are shown."""
    with av.open(str(path)) as container:
        frames = sorted(container.decode(video=0), key=lambda frame: frame.pts)
        return np.stack([frame.to_ndarray(format="rgb24") for frame in frames])


def write_with_b_frames(path: Path) -> Path:
    """A file like other tools make: far key frames, and frames stored in another order than they are shown."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("h264", 10, options={"g": "10", "bf": "3", "b-adapt": "0"})
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for number in range(COUNT):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(number), format="rgb24")))
        container.mux(stream.encode(None))
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.has_b_frames
    return path


@pytest.fixture(scope="module", params=["libsvtav1", "h264", "b-frames", "reference"])
def file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("video") / "file.mp4"
    if request.param == "reference":
        return REFERENCE
    if request.param == "b-frames":
        return write_with_b_frames(path)
    with VideoWriter(path, 10, 48, 32, codec=request.param) as writer:
        for number in range(COUNT):
            writer.write(picture(number))
    return path


def test_random_access_is_sequential_decoding(file: Path) -> None:
    slow, reader = decode_in_order(file), VideoReader(file)
    assert len(reader) == len(slow)

    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(st.lists(st.integers(0, len(slow) - 1), min_size=1, max_size=6))
    def same(numbers: list[int]) -> None:
        np.testing.assert_array_equal(reader.frames(numbers), slow[numbers])

    same()
    reader.close()
    np.testing.assert_array_equal(reader.frames([3, 1, 3]), slow[[3, 1, 3]])  # it opens again


@pytest.mark.parametrize("codec", ["libsvtav1", "h264"])
def test_what_is_written_is_read_back(tmp_path: Path, codec: str) -> None:
    with VideoWriter(tmp_path / "file.mp4", 10, 48, 32, codec=codec) as writer:
        for number in range(COUNT):
            writer.write(picture(number))
    frames = VideoReader(tmp_path / "file.mp4").frames(range(COUNT))
    wanted = np.stack([picture(number) for number in range(COUNT)])
    assert (
        np.abs(np.median(frames[:, 16:], axis=(1, 2, 3)) - 10 * np.arange(COUNT)).max() <= 2
    )  # 10 apart: no mix-up
    assert np.abs(frames.astype(int) - wanted).mean() < 4


def test_a_number_past_the_end_names_the_file() -> None:
    with pytest.raises(VideoError, match=r"file-000\.mp4 has 63 frames, but frame 63"):
        VideoReader(REFERENCE).frames([0, 63])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match=r"nothing\.mp4 is missing"):
        VideoReader(tmp_path / "nothing.mp4")


@pytest.mark.parametrize("kept", [0, 1, 100, 0.3, 0.6, 0.9, 0.999])
def test_a_file_that_was_cut_off_is_a_named_error(tmp_path: Path, kept: float) -> None:
    whole = REFERENCE.read_bytes()
    path = tmp_path / "cut.mp4"
    path.write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
    with pytest.raises(VideoError, match=r"cut\.mp4.*(Fetch it again|restore)"):
        VideoReader(path).frames([0, 31, 62])


def test_random_damage_is_a_named_error_or_pictures(tmp_path: Path) -> None:
    whole, rng = REFERENCE.read_bytes(), np.random.default_rng(0)
    path = tmp_path / "damaged.mp4"
    failures = 0
    for attempt in range(60):
        damaged = bytearray(whole)
        begin = 0 if attempt % 2 else len(whole) - 2000  # the index is at the end
        for place in rng.integers(begin, len(whole), size=12):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            reader = VideoReader(path)
            assert reader.frames([0, len(reader) - 1]).shape[0] == 2
        except VideoError as error:
            failures += 1
            assert "damaged.mp4" in str(error)
    assert failures > 5


def test_sound_without_a_picture_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", 44100)
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono"
        )
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(VideoError, match="no picture"):
        VideoReader(path)


def test_settings_that_cannot_work_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'h264'"):
        VideoWriter(tmp_path / "file.mp4", 10, 48, 32, codec="h246")
    with pytest.raises(ConfigError, match="even height and width"):
        VideoWriter(tmp_path / "file.mp4", 10, 47, 32)
    with (
        pytest.raises(VideoError, match=r"\(32, 48, 3\) uint8"),
        VideoWriter(tmp_path / "file.mp4", 10, 48, 32) as writer,
    ):
        writer.write(np.zeros((48, 32, 3), dtype=np.uint8))
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a disk that is always full")
def test_a_full_disk_is_a_write_error() -> None:
    writer = VideoWriter("/dev/full", 10, 48, 32, codec="h264")
    with pytest.raises(WriteError, match="full"):
        for number in range(COUNT):
            writer.write(picture(number))
        writer.close()

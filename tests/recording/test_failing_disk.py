"""A disk that fails at any moment of a recording: a named error, nothing finished is lost, and recording goes on."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import pyarrow.parquet as pq
import pytest

from smolact.datasets.reader import LeRobotDataset
from smolact.datasets.writer import DatasetWriter
from smolact.errors import WriteError
from smolact.recording.recorder import Recorder, RecordingPlan, dataset_features
from tests.recording.worlds import Arm, Counting
from tests.training.test_disk_full import FailingDisk

LENGTH = 3


class RecordersDisk(FailingDisk):
    """Parquet files and videos fail too, which PyArrow and FFmpeg write past Python."""

    def __init__(self, patch: pytest.MonkeyPatch, nth: int, code: int) -> None:
        super().__init__(patch, nth, code, stays=False)
        disk, parquet, opened = self, pq.ParquetWriter, av.open

        class Parquet(parquet):  # type: ignore[misc,valid-type]
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                disk.ask("parquet: open")
                super().__init__(*args, **kwargs)

            def write_table(self, *args: Any, **kwargs: Any) -> None:
                disk.ask("parquet: write")
                super().write_table(*args, **kwargs)

            def close(self) -> None:
                if self.is_open:
                    super().close()
                    disk.ask("parquet: close")

        class Container:
            def __init__(self, real: Any) -> None:
                self.real = real

            def __getattr__(self, name: str) -> Any:
                return getattr(self.real, name)

            def mux(self, packets: Any) -> None:
                disk.ask_ffmpeg("video: write")
                self.real.mux(packets)

            def close(self) -> None:
                self.real.close()
                disk.ask_ffmpeg("video: close")

        def open_container(path: str, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            if mode != "w":
                return opened(path, mode, *args, **kwargs)
            disk.ask_ffmpeg("video: open")
            return Container(opened(path, mode, *args, **kwargs))

        patch.setattr(pq, "ParquetWriter", Parquet)
        patch.setattr(av, "open", open_container)

    def ask_ffmpeg(self, name: str) -> None:
        try:
            self.ask(name)
        except OSError as error:
            av.error.err_check(-(error.errno or 0))  # as FFmpeg's own


def open_writer(root: Path, video: bool) -> DatasetWriter:
    features = dataset_features(Arm().features, video=video)
    if (root / "meta/info.json").is_file():
        return DatasetWriter.resume(root, fps=10, features=features)
    return DatasetWriter.create(root, fps=10, features=features, video_codec="h264")


def record(writer: DatasetWriter, episodes: int = 1) -> None:
    plan = RecordingPlan(10, episodes, LENGTH / 10, 0, "Grip.", realtime=False)
    Recorder(Arm(), Counting(), writer, plan).run()


def episodes(root: Path) -> int:
    """How many there are, after every one of their frames was read."""
    dataset = LeRobotDataset(root)
    for index in range(len(dataset)):
        assert dataset[index]["frame_index"] == index % LENGTH
    assert len(dataset) == LENGTH * dataset.num_episodes
    return dataset.num_episodes


def fails(nth: int, code: int, work: Callable[[], object]) -> tuple[bool, list[str]]:
    """Do the work with a disk of which the `nth` operation fails; whether it did, and all that was asked."""
    with pytest.MonkeyPatch.context() as patch:
        disk = RecordersDisk(patch, nth, code)
        try:
            work()
        except WriteError as error:
            assert error.errno == code
            assert any(words in str(error) for words in ("disk is full", "could not be written"))
            return True, disk.asked
        return False, disk.asked


CASES = [
    *[(True, errno.ENOSPC, 13), (False, errno.EIO, 9)],
    *(
        pytest.param(video, code, 1, marks=pytest.mark.slow)
        for video in (True, False)
        for code in (errno.ENOSPC, errno.EIO)
    ),
]


@pytest.mark.parametrize(("video", "code", "every"), CASES)
def test_whatever_fails_while_recording_costs_no_finished_episode(
    tmp_path: Path, video: bool, code: int, every: int
) -> None:
    with open_writer(tmp_path / "first", video) as writer:
        record(writer)
    asked: list[str] = []
    nth = 0
    while nth <= len(asked):
        nth += every
        root = Path(shutil.copytree(tmp_path / "first", tmp_path / str(nth)))
        writer = open_writer(root, video)
        failed, asked = fails(nth, code, lambda: record(writer, 2))  # noqa: B023
        there = episodes(root)
        assert failed or there == 3, f"{nth}: {asked[nth - 1 :][:1]} was swallowed"
        assert 1 <= there <= 3
        record(writer)  # with the same writer, as one who frees some space does
        again = episodes(root)
        assert there < again <= there + 2  # an episode whose publication failed comes along
        writer.close()
        with open_writer(root, video) as another:
            record(another)
        assert episodes(root) == again + 1
        assert {path.name for path in root.iterdir()} <= {"data", "meta", "videos"}
        shutil.rmtree(root)
    wanted = {"open", "write", "fsync", "replace", "parquet: open", "parquet: write", "parquet: close"}
    assert wanted <= set(asked)
    assert {"video: open", "video: write", "video: close"} <= set(asked) or not video


@pytest.mark.parametrize(("video", "code", "every"), CASES)
def test_whatever_fails_while_a_dataset_is_begun_or_resumed_another_try_works(
    tmp_path: Path, video: bool, code: int, every: int
) -> None:
    with open_writer(tmp_path / "left", video) as writer:
        record(writer)
    (tmp_path / "left/data/chunk-000/file-001.parquet").write_bytes(b"what a dead writer left")
    for there in (0, 1):
        asked: list[str] = []
        nth = 0
        while nth <= len(asked):
            nth += every
            root = tmp_path / f"{there} {nth}"
            if there:
                shutil.copytree(tmp_path / "left", root)
            failed, asked = fails(nth, code, lambda: open_writer(root, video).close())  # noqa: B023
            assert failed or nth > len(asked), f"{nth}: {asked[nth - 1 :][:1]} was swallowed"
            with open_writer(root, video) as writer:
                record(writer)
            assert episodes(root) == there + 1
        assert len(asked) > 5


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 2 MB, where a test may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = (
        shutil.which("mount")
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], capture_output=True, check=False
        ).returncode
    )
    if not mounted:
        pytest.skip("needs the right to mount")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("video", [True, False])
def test_a_disk_that_really_is_full_costs_no_finished_episode(small_disk: Path, video: bool) -> None:
    """That the stand-ins above tell the truth: what PyArrow and FFmpeg do when there is no room left."""
    refused = []
    for room in range(0, 128_000, 8000):
        root, filler = small_disk / "d", small_disk / "filler"
        writer = open_writer(root, video)
        record(writer)
        free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
        filler.write_bytes(bytes(free - room))
        try:
            record(writer)
        except WriteError as error:
            assert error.errno == errno.ENOSPC
            refused.append(room)
        assert episodes(root) in ((1, 2) if room in refused else (2,))
        filler.unlink()
        record(writer)
        writer.close()
        assert episodes(root) in ((2, 3) if room in refused else (3,))
        shutil.rmtree(root)
    assert 3 < len(refused) < 16

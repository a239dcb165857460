"""Recording: what is accepted, what is on disk when, and what survives a full disk and a kill."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from smolact.datasets.inspection import check_dataset
from smolact.datasets.metadata import LeRobotDatasetMetadata
from smolact.datasets.reader import LeRobotDataset
from smolact.datasets.video import VideoWriter
from smolact.datasets.writer import DatasetWriter
from smolact.errors import ConfigError, FeatureError, WriteError
from tests.datasets.make import FPS, TASKS, features, frame, record, write

TOP = ("observation.images.top",)


def create(root: Path, dtype: str = "video", **options: Any) -> DatasetWriter:
    return DatasetWriter.create(root, fps=FPS, features=features(dtype), video_codec="h264", **options)


def lengths(root: Path) -> list[int]:
    """The lengths of all episodes, after every one of their frames was read."""
    dataset = LeRobotDataset(root)
    for index in range(len(dataset)):
        assert dataset[index]["index"] == index
    return dataset.meta.episodes.length.tolist()


def a_frame(**changes: Any) -> dict[str, Any]:
    return {**frame(0, 0, TOP, 5), **changes}


def test_each_saved_episode_is_on_disk_at_once(tmp_path: Path) -> None:
    root = tmp_path / "d"
    writer = create(root)
    assert LeRobotDatasetMetadata(root).total_episodes == 0
    for episode, length in enumerate((3, 2)):
        record(writer, episode, length)
        assert lengths(root) == [3, 2][: episode + 1]
    assert (writer.num_episodes, writer.num_frames) == (2, 5)
    writer.close()
    assert {entry.name for entry in root.iterdir()} == {"data", "meta", "videos"}


def test_a_group_is_on_disk_when_it_is_full_and_at_the_end(tmp_path: Path) -> None:
    root = tmp_path / "d"
    with create(root, episodes_per_file=2) as writer:
        seen = []
        for episode in range(5):
            record(writer, episode, 2)
            seen.append(LeRobotDatasetMetadata(root).total_episodes)
        assert seen == [0, 2, 2, 4, 4]
        writer.commit()
        assert LeRobotDatasetMetadata(root).total_episodes == 5
        record(writer, 5, 3)
    assert lengths(root) == [2, 2, 2, 2, 2, 3]
    files = sorted(path.name for path in root.rglob("data/*/*.parquet"))
    assert files == [f"file-00{number}.parquet" for number in range(4)]
    assert (
        pq.ParquetFile(root / "data/chunk-000/file-000.parquet").metadata.num_row_groups == 2
    )  # one an episode


@pytest.mark.parametrize("dtype", ["video", "image"])
@pytest.mark.parametrize("group", [1, 3])
def test_discarded_frames_leave_nothing_behind(tmp_path: Path, dtype: str, group: int) -> None:
    kept, other = tmp_path / "kept", tmp_path / "other"
    with create(kept, dtype, episodes_per_file=group) as writer:
        record(writer, 0, 3)
        for number in range(4):
            writer.add_frame(frame(5, number, TOP, 4), task="Something else.")
        writer.discard_episode()
        writer.discard_episode()  # nothing to discard is fine
        record(writer, 1, 2)
    with create(other, dtype, episodes_per_file=group) as writer:
        record(writer, 0, 3)
        record(writer, 1, 2)
    assert LeRobotDatasetMetadata(kept).tasks == dict(enumerate(TASKS))
    ours, theirs = LeRobotDataset(kept), LeRobotDataset(other)
    assert len(ours) == len(theirs) == 5
    for mine, twin in zip(ours, theirs, strict=True):
        for key, value in mine.items():
            assert torch.equal(value, twin[key]) if isinstance(value, torch.Tensor) else value == twin[key]


def test_frames_never_saved_are_dropped_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), create(tmp_path / "d") as writer:
        record(writer, 0, 2)
        writer.add_frame(a_frame(), task="t")
    assert "1 frames were added but not saved" in caplog.text
    assert lengths(tmp_path / "d") == [2]


def test_an_exception_keeps_the_episodes_before_it(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="robot"), create(tmp_path / "d", episodes_per_file=10) as writer:
        record(writer, 0, 2)
        raise RuntimeError("the robot caught fire")
    assert lengths(tmp_path / "d") == [2]


def test_statistics_are_those_of_the_frames(tmp_path: Path) -> None:
    root = write(tmp_path / "d", (7, 4, 5), "image", episodes_per_file=2)
    dataset = LeRobotDataset(root, return_uint8=True)
    samples = [dataset[index] for index in range(len(dataset))]
    for key in ("action", "observation.state", "observation.images.top", "next.done", "timestamp"):
        every = np.stack([sample[key].numpy() for sample in samples]).astype(np.float64)
        found = dataset.meta.stats[key]
        axes: tuple[int, ...] = (0,)
        if key == TOP[0]:
            every, axes = every / 255, (0, 2, 3)
        assert found["mean"].shape == ((3, 1, 1) if key == TOP[0] else dataset.features[key].shape)
        wanted: dict[str, Callable[..., Any]] = {"min": np.min, "max": np.max, "mean": np.mean, "std": np.std}
        for name, function in wanted.items():
            np.testing.assert_allclose(
                found[name].ravel(), np.atleast_1d(function(every, axis=axes)), atol=1e-7
            )
        spread = np.atleast_1d(np.ptp(every, axis=axes))
        for name, quantile in {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}.items():
            true = np.atleast_1d(np.quantile(every, quantile, axis=axes, method="inverted_cdf"))
            assert (np.abs(found[name].ravel() - true) <= spread / 1000 + 1e-9).all(), (key, name)
        assert found["count"] == 16


def test_tasks_may_change_within_an_episode(tmp_path: Path) -> None:
    with create(tmp_path / "d") as writer:
        for number, task in enumerate(["a", "b", "a"]):
            writer.add_frame(frame(0, number, TOP, 3), task=task)
        writer.save_episode()
    dataset = LeRobotDataset(tmp_path / "d")
    assert [sample["task"] for sample in dataset] == ["a", "b", "a"]
    assert dataset.meta.episodes[0].tasks == ("a", "b")


def test_images_come_in_any_usual_form(tmp_path: Path) -> None:
    with create(tmp_path / "d", "image") as writer:
        plain = a_frame()[TOP[0]]
        for form in (
            plain,
            plain.transpose(2, 0, 1),
            plain / 255,
            torch.from_numpy(plain).permute(2, 0, 1) / 255,
        ):
            writer.add_frame(a_frame(**{TOP[0]: form}), task="t")
        writer.save_episode()
    dataset = LeRobotDataset(tmp_path / "d", return_uint8=True)
    for sample in dataset:
        np.testing.assert_array_equal(sample[TOP[0]].permute(1, 2, 0), plain)


def test_buffers_may_be_used_again(tmp_path: Path) -> None:
    with create(tmp_path / "d", "video", episodes_per_file=2) as writer:
        reused = a_frame()
        for number in range(3):
            reused["action"][:] = number
            reused[TOP[0]][:] = 40 * number
            writer.add_frame(reused, task="t")
        writer.save_episode()
    samples = list(LeRobotDataset(tmp_path / "d"))
    assert [sample["action"][0].item() for sample in samples] == [0, 1, 2]
    assert [round(255 * sample[TOP[0]].mean().item() / 40) for sample in samples] == [0, 1, 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"acton": 1}, r"has acton.*created with"),
        ({"action": np.zeros(3)}, r"'action' has the shape \(3,\)"),
        ({"action": np.array([1, np.nan])}, "'action' is not finite"),
        ({"action": np.array(["a", "b"])}, "'action' has the dtype"),
        ({"next.done": 1.5}, "'next.done' has the dtype float64"),
        ({TOP[0]: np.zeros((48, 32, 3), np.uint8)}, r"image .* has the shape \(48, 32, 3\)"),
        ({TOP[0]: np.full((32, 48, 3), 1.5)}, r"floats from 1\.5 to 1\.5"),
        ({TOP[0]: np.full((32, 48, 3), np.nan)}, "expected \\[0, 1\\]"),
        ({TOP[0]: np.zeros((32, 48, 3), np.int32)}, "dtype int32: expected uint8"),
    ],
)
def test_a_frame_that_does_not_fit_is_refused_and_leaves_no_trace(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with create(tmp_path / "d") as writer:
        writer.add_frame(a_frame(), task="t")
        with pytest.raises(FeatureError, match=message):
            writer.add_frame(a_frame(**change), task="t")
        writer.add_frame(a_frame(), task="t")
        writer.save_episode()
    assert lengths(tmp_path / "d") == [2]


def test_a_missing_value_is_named(tmp_path: Path) -> None:
    with create(tmp_path / "d") as writer:
        lacking = a_frame()
        lacking["actions"] = lacking.pop("action")
        with pytest.raises(FeatureError, match=r"lacks action and has actions.*Did you mean 'action'"):
            writer.add_frame(lacking, task="t")


@pytest.mark.parametrize(
    ("task", "message"), [("", "empty"), ("  ", "empty"), (None, "NoneType"), (3, "int 3")]
)
def test_a_task_must_say_something(tmp_path: Path, task: Any, message: str) -> None:
    with create(tmp_path / "d") as writer, pytest.raises(FeatureError, match=message):
        writer.add_frame(a_frame(), task=task)


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    root = write(tmp_path / "d", (2,))
    with pytest.raises(ConfigError, match="not empty"):
        create(root)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="not empty"):
        create(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    create(tmp_path / "empty").close()


@pytest.mark.parametrize(
    ("described", "message"),
    [
        ({}, "needs features"),
        ({"action": {"dtype": "float", "shape": (2,)}}, r"dtype 'float'.*Did you mean 'float64'"),
        ({"action": {"dtype": "float32", "shape": (0,)}}, "sizes"),
        ({"action": {"dtype": "float32"}}, "needs a dtype and a shape"),
        ({"a/../../b": {"dtype": "float32", "shape": (1,)}}, "can't name a feature"),
        ({"task": {"dtype": "string", "shape": (1,)}}, "can't name a feature"),
        ({"camera": {"dtype": "video", "shape": (31, 48, 3)}}, "even height and width"),
        ({"camera": {"dtype": "image", "shape": (32, 48, 1)}}, r"expected \(height, width, 3\)"),
    ],
)
def test_features_that_cannot_be_are_refused(tmp_path: Path, described: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DatasetWriter.create(tmp_path / "d", fps=10, features=described)
    assert not (tmp_path / "d").exists()


def test_another_datasets_features_can_be_used(tmp_path: Path) -> None:
    first = LeRobotDatasetMetadata(write(tmp_path / "one", (2,)))
    second = LeRobotDatasetMetadata(
        DatasetWriter.create(tmp_path / "two", fps=10, features=first.features).root,
    )
    assert second.features == first.features


def test_misuse_is_told(tmp_path: Path) -> None:
    for setting in ({"fps": 0}, {"fps": float("nan")}, {"episodes_per_file": 0}, {"video_codec": "h265x"}):
        with pytest.raises(ConfigError, match=next(iter(setting)).split("_")[-1]):
            DatasetWriter.create(tmp_path / "d", **{"fps": 10, "features": features(), **setting})
    writer = create(tmp_path / "d")
    with pytest.raises(ConfigError, match="no episode to save"):
        writer.save_episode()
    writer.close()
    writer.close()
    with pytest.raises(ConfigError, match="closed"):
        writer.add_frame(a_frame(), task="t")


def at_each_step(monkeypatch: pytest.MonkeyPatch, action: Callable[[int], None]) -> list[str]:
    """Call `action(n)` before the nth fsync, rename or mkdir; returns the list in which the steps are noted."""
    steps: list[str] = []
    acting = False

    def watched(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def stand_in(*args: Any, **kwargs: Any) -> Any:
            nonlocal acting
            if not acting:  # the action may use these calls itself
                steps.append(name)
                acting = True
                try:
                    action(len(steps))
                finally:
                    acting = False
            return real(*args, **kwargs)

        return stand_in

    for name in ("fsync", "replace", "mkdir"):
        monkeypatch.setattr(os, name, watched(name, getattr(os, name)))
    return steps


def full_at(nth: int, code: int = errno.ENOSPC) -> Callable[[int], None]:
    def full(step: int) -> None:
        if step == nth:
            raise OSError(code, os.strerror(code))

    return full


@pytest.mark.parametrize("dtype", ["video", "image"])
def test_a_full_disk_costs_no_earlier_episode_and_can_be_freed(tmp_path: Path, dtype: str) -> None:
    for nth in range(1, 100):
        root = tmp_path / str(nth)
        writer = create(root, dtype)
        record(writer, 0, 2)
        with pytest.MonkeyPatch.context() as monkeypatch:
            steps = at_each_step(monkeypatch, full_at(nth))
            try:
                record(writer, 1, 3)
            except WriteError as error:
                assert "disk is full" in str(error)
            else:
                assert len(steps) < nth  # every step has failed once
                break
        assert lengths(root) in ([2], [2, 3])  # the second: only the last fsync of all failed
        record(writer, 2, 1)  # it goes on, and brings the waiting episode along
        assert lengths(root) == [2, 3, 1]
        assert LeRobotDatasetMetadata(root).stats["action"]["count"] == 6  # no try is counted twice
        writer.close()
    assert nth > 15


@pytest.mark.parametrize("group", [1, 3])
def test_a_video_that_breaks_off_costs_only_what_was_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, group: int
) -> None:
    real = VideoWriter.write
    with create(tmp_path / "d", episodes_per_file=group) as writer:
        record(writer, 0, 2)
        writer.commit()
        if group > 1:
            writer.add_frame(a_frame(), task="Lost.")
            writer.save_episode()

        def full(self: VideoWriter, image: Any) -> None:
            if self.num_frames >= 2:
                raise WriteError(errno.ENOSPC, "full")
            real(self, image)

        monkeypatch.setattr(VideoWriter, "write", full)
        with pytest.raises(WriteError):
            record(writer, 1, 4)
        assert (writer.num_episodes, writer.num_frames) == (1, 2)
        assert ("1 episodes could not be written and are lost" in caplog.text) == (group > 1)
        monkeypatch.setattr(VideoWriter, "write", real)
        record(writer, 1, 3)
    assert lengths(tmp_path / "d") == [2, 3]
    assert LeRobotDatasetMetadata(tmp_path / "d").tasks == dict(enumerate(TASKS))


def test_a_kill_at_any_step_leaves_whole_episodes(tmp_path: Path) -> None:
    # What a killed process leaves is what is on disk at that moment: a copy made there stands for the kill.
    root = tmp_path / "d"
    copies: list[Path] = []

    def copy_root() -> None:
        copies.append(tmp_path / f"killed-{len(copies)}")
        shutil.copytree(root, copies[-1])

    with create(root, episodes_per_file=2) as writer:
        for episode in range(2):
            record(writer, episode, 2)
        with pytest.MonkeyPatch.context() as monkeypatch:
            at_each_step(monkeypatch, lambda step: copy_root())
            for episode in range(2, 4):
                record(writer, episode, 2)
        copy_root()
    survived = [len(lengths(copy)) for copy in copies]
    assert len(copies) > 15
    assert survived == sorted(survived)
    assert set(survived) == {2, 4}


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs kill -9")
def test_a_killed_recorder_loses_no_acknowledged_episode(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tests.datasets.make import *\n"
        "writer = DatasetWriter.create(sys.argv[1], fps=10, features=features(), video_codec='h264')\n"
        "for episode in range(1000): record(writer, episode, 3); print(episode + 1, flush=True)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "d")]
    top = Path(__file__).parent.parent.parent
    path = os.pathsep.join([str(top), str(top / "src"), os.environ.get("PYTHONPATH", "")])
    with subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path}) as child:
        assert child.stdout is not None
        acknowledged = [int(child.stdout.readline()) for _ in range(3)][-1]
        child.send_signal(signal.SIGKILL)
    found = lengths(tmp_path / "d")
    assert len(found) >= acknowledged
    assert set(found) == {3}
    assert all(fault.severity == "warning" for fault in check_dataset(tmp_path / "d"))


def test_what_is_written_says_what_it_is(tmp_path: Path) -> None:
    root = write(tmp_path / "d", (2, 3))
    info = json.loads((root / "meta/info.json").read_text())
    assert info["codebase_version"] == "v3.0"
    assert info["splits"] == {"train": "0:2"}
    assert (info["total_frames"], info["total_tasks"], info["fps"]) == (5, 2, 10)
    camera = info["features"]["observation.images.top"]
    assert camera["names"] == ["height", "width", "channels"]
    assert (camera["info"]["video.codec"], camera["info"]["video.g"], camera["info"]["video.crf"]) == (
        "av1",
        2,
        30,
    )
    assert pq.read_schema(root / "data/chunk-000/file-000.parquet").pandas_metadata is None
    assert pq.read_schema(root / "meta/tasks.parquet").pandas_metadata["index_columns"] == ["task"]

"""Going on with a dataset: as if nobody had stopped, whoever wrote it, and whatever a dead writer left."""

from __future__ import annotations

import errno
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from smolact.datasets.inspection import check_dataset
from smolact.datasets.metadata import LeRobotDatasetMetadata
from smolact.datasets.reader import LeRobotDataset
from smolact.datasets.repair import repair
from smolact.datasets.writer import DatasetWriter
from smolact.errors import ConfigError, DatasetError, FeatureError, NotFoundError, WriteError
from tests.datasets.make import TASKS, features, frame, record, write
from tests.datasets.test_writer import TOP, at_each_step, create, full_at, lengths
from tests.training.power import Disk, outcomes

PARITY = Path(__file__).parent.parent / "parity/data"


def same_files(one: Path, other: Path) -> None:
    paths = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert paths == sorted(path.relative_to(other) for path in other.rglob("*") if path.is_file())
    for path in paths:
        assert (one / path).read_bytes() == (other / path).read_bytes(), path


@pytest.mark.parametrize("dtype", ["video", "image"])
@pytest.mark.parametrize("group", [1, 2])
def test_stopping_changes_no_byte(tmp_path: Path, dtype: str, group: int) -> None:
    straight = write(tmp_path / "straight", (3, 2, 4, 2), dtype, video_codec="h264", episodes_per_file=group)
    with create(tmp_path / "stopped", dtype, episodes_per_file=group) as writer:
        record(writer, 0, 3)
        record(writer, 1, 2)
    for episodes in ((2,), (3,)) if group == 1 else ((2, 3),):
        with DatasetWriter.resume(tmp_path / "stopped", episodes_per_file=group) as writer:
            assert writer.num_episodes == episodes[0]
            for episode in episodes:
                record(writer, episode, (3, 2, 4, 2)[episode])
    same_files(straight, tmp_path / "stopped")


def test_what_lerobot_recorded_goes_on_in_new_files(tmp_path: Path) -> None:
    root = tmp_path / "d"
    shutil.copytree(PARITY / "dataset_v30", root)
    before = LeRobotDatasetMetadata(root)
    rng = np.random.default_rng(0)
    images = {key: np.full((64, 96, 3), 200, np.uint8) for key in before.camera_keys}
    with DatasetWriter.resume(root, fps=10, features=before.features) as writer:
        for _ in range(4):
            vectors = {
                key: rng.standard_normal(6).astype(np.float32) for key in ("observation.state", "action")
            }
            writer.add_frame({**images, **vectors}, task="Something new.")
        writer.save_episode()
    after = LeRobotDatasetMetadata(root)
    assert after.total_episodes == before.total_episodes + 1
    assert after.tasks == {**before.tasks, len(before.tasks): "Something new."}
    assert {**after.info, "total_episodes": 0} | {
        key: before.info[key] for key in ("total_episodes", "total_frames", "total_tasks", "splits")
    } == before.info
    for path in sorted((PARITY / "dataset_v30").rglob("*/chunk-*/*")):
        assert (root / path.relative_to(PARITY / "dataset_v30")).read_bytes() == path.read_bytes()
    samples = LeRobotDataset(root)
    every = np.stack([samples[index]["action"].numpy() for index in range(len(samples))]).astype(np.float64)
    np.testing.assert_allclose(after.stats["action"]["mean"], every.mean(0), rtol=1e-6)
    np.testing.assert_allclose(after.stats["action"]["std"], every.std(0), rtol=1e-6)
    for key in images:  # 4 frames of 200 / 255 beside what stats.json said
        n, old = before.total_frames, before.stats[key]["mean"]
        np.testing.assert_allclose(after.stats[key]["mean"], (old * n + 4 * 200 / 255) / (n + 4), rtol=1e-9)
        assert after.stats[key]["count"] == n + 4


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"fps": 30}, ConfigError, r"has 10 frames a second, and 30.*Leave the rate out, ask for 10"),
        ({"video_codec": "libsvtav1"}, ConfigError, r"are h264.*--dataset\.vcodec=h264"),
        ({"video_codec": "h265x"}, ConfigError, "h265x"),
        ({"episodes_per_file": 0}, ConfigError, "episodes_per_file=0"),
        ({"features": {"action": {"dtype": "float32", "shape": (2,)}}}, FeatureError, "not recorded now"),
        (
            {"features": {**features(), "action": {"dtype": "float64", "shape": (3,)}}},
            FeatureError,
            r"'action' has the dtype float32 in the dataset and float64 now; 'action' has the shape \(2,\)",
        ),
        (
            {
                "features": {
                    **features(),
                    "observation.state": {"dtype": "float32", "shape": (4,), "names": ["b", "a", "c", "d"]},
                }
            },
            FeatureError,
            "has the names",
        ),
        (
            {"features": {**features(), "observation.stat": features()["action"]}},
            FeatureError,
            "Did you mean",
        ),
        ({"features": features("image")}, FeatureError, "the dtype video in the dataset and image now"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_changes(
    tmp_path: Path, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    root = write(tmp_path / "d", (2,), video_codec="h264")
    shutil.copytree(root, tmp_path / "before")
    with pytest.raises(error, match=message):
        DatasetWriter.resume(root, **options)
    same_files(root, tmp_path / "before")


def test_what_is_no_dataset_of_today_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        DatasetWriter.resume(tmp_path / "nothing")
    with pytest.raises(ConfigError, match=r"v2\.1.*convert"):
        DatasetWriter.resume(PARITY / "dataset_v21")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="missing"):
        DatasetWriter.resume(tmp_path / "empty")


def test_counts_that_another_tool_made_untrue_are_not_used(tmp_path: Path) -> None:
    root = write(tmp_path / "d", (2, 3), "image")
    path = root / "meta/smolact_image_counts.json"
    states = json.loads(path.read_text())
    assert [state["episodes"] for state in states] == [1, 2]
    states[-1]["frames"] = 99
    path.write_text(json.dumps(states))
    before = LeRobotDatasetMetadata(root).stats[TOP[0]]["mean"]
    with DatasetWriter.resume(root) as writer:
        record(writer, 0, 5)
    dataset = LeRobotDataset(root, return_uint8=True)
    every = np.stack([dataset[index][TOP[0]].numpy() for index in range(10)]) / 255
    assert (before.ravel() != every.mean((0, 2, 3))).any()
    np.testing.assert_allclose(dataset.meta.stats[TOP[0]]["mean"].ravel(), every.mean((0, 2, 3)), rtol=1e-9)
    path.write_text("[{}]")
    with pytest.raises(DatasetError, match="Remove it"):
        DatasetWriter.resume(root)


@pytest.mark.parametrize("dtype", ["video", "image"])
def test_after_a_kill_at_any_step_recording_goes_on(
    tmp_path: Path, dtype: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Killed while it saves, and killed again while it resumes: what is on disk at each step is what a kill leaves."""
    root = tmp_path / "d"
    copies: list[Path] = []

    def copy_root(_step: int) -> None:
        copies.append(tmp_path / f"killed-{len(copies)}")
        shutil.copytree(root, copies[-1])

    writer = create(root, dtype)
    record(writer, 0, 2)
    with pytest.MonkeyPatch.context() as patch:
        at_each_step(patch, copy_root)
        for number in range(3):
            writer.add_frame(frame(1, number, TOP, 3), task="New.")
        writer.save_episode()
    writer.add_frame(frame(1, 0, TOP, 3), task="Newer.")
    copy_root(0)
    saving = len(copies)
    root = copies[-4]
    with pytest.MonkeyPatch.context() as patch:
        at_each_step(patch, copy_root)
        DatasetWriter.resume(root).close()
    assert saving > 12
    assert len(copies) > saving
    ahead = [assert_whole_or_unfinished(copy) for copy in copies]
    assert any(ahead) and not all(ahead)
    for number, copy in enumerate(copies):
        mended = shutil.copytree(copy, tmp_path / "mended")
        kept = repair(mended).episodes
        assert kept in (LeRobotDatasetMetadata(copy).total_episodes, 2)
        assert check_dataset(mended, quick=number > 0) == []
        assert LeRobotDatasetMetadata(mended).stats["action"]["count"] == [2, 5][kept - 1]
        shutil.rmtree(mended)
        shutil.copytree(copy, mended)
        DatasetWriter.resume(mended).close()  # nothing more is recorded
        assert check_dataset(mended, quick=True) == []
        shutil.rmtree(mended)
        there = LeRobotDatasetMetadata(copy).total_episodes
        with caplog.at_level(logging.WARNING), DatasetWriter.resume(copy) as again:
            assert again.num_episodes == there
            record(again, 1, 4)
        assert lengths(copy) == [*[2, 3, 4][:there], 4]
        meta = LeRobotDatasetMetadata(copy)
        assert meta.tasks == dict(enumerate([TASKS[0], "New.", TASKS[1]] if there == 2 else TASKS))
        assert meta.stats["action"]["count"] == meta.total_frames
        assert meta.stats[TOP[0]]["count"] == meta.total_frames
        allowed = {"data", "meta", "unfinished-001", "unfinished-002"} | (
            {"videos"} if dtype == "video" else set()
        )
        assert {entry.name for entry in copy.iterdir()} <= allowed
        assert check_dataset(copy, quick=True) == []
    assert "What was left of it is now in" in caplog.text


def test_statistics_of_others_cameras_do_not_count_an_episode_that_was_lost(tmp_path: Path) -> None:
    """Nobody kept the counts of a camera that LeRobot recorded, and a killed writer has left it a frame of pure white."""
    root = tmp_path / "theirs"
    shutil.copytree(PARITY / "dataset_v30", root)
    before = LeRobotDatasetMetadata(root).stats
    copies: list[Path] = []

    def copy_root(step: int) -> None:
        copies.append(shutil.copytree(root, tmp_path / f"killed-{step}"))

    writer = DatasetWriter.resume(root)
    cameras = dict.fromkeys(LeRobotDatasetMetadata(root).camera_keys, np.full((64, 96, 3), 255, np.uint8))
    vectors = {"observation.state": np.zeros(6, np.float32), "action": np.zeros(6, np.float32)}
    writer.add_frame({**cameras, **vectors}, task="Nothing.")
    with pytest.MonkeyPatch.context() as patch:
        at_each_step(patch, copy_root)
        writer.save_episode()
    ahead = [
        copy
        for copy in copies
        if LeRobotDatasetMetadata(copy).total_episodes == 4 and assert_whole_or_unfinished(copy)
    ]
    assert ahead
    for copy in ahead:
        assert LeRobotDatasetMetadata(copy).stats[TOP[0]]["max"].max() == 1.0
        DatasetWriter.resume(copy).close()
        after = LeRobotDatasetMetadata(copy).stats
        for statistic in ("min", "max", "mean", "std"):
            np.testing.assert_allclose(after[TOP[0]][statistic], before[TOP[0]][statistic], atol=1e-6)
        assert check_dataset(copy, quick=True) == []


def assert_whole_or_unfinished(root: Path) -> bool:
    """That a check finds no error in what a kill left, and says of each thing what to do; whether the statistics are ahead."""
    faults = check_dataset(root, quick=True)
    for fault in faults:
        assert fault.severity == "warning", fault
        done = ("dataset repair", "Remove it when nothing writes there", "Record some")
        assert any(what in fault.message for what in done), fault
    ahead = [fault for fault in faults if fault.location == "meta/stats.json"]
    assert all("does not count yet" in fault.message and "--resume=true" in fault.message for fault in ahead)
    return bool(ahead)


def test_a_writer_that_died_at_the_beginning_is_in_nobodys_way(tmp_path: Path) -> None:
    root = tmp_path / "d"
    root.mkdir()
    copies: list[Path] = []

    def copy_root(_step: int) -> None:
        copies.append(tmp_path / f"killed-{len(copies)}")
        shutil.copytree(root, copies[-1])

    with pytest.MonkeyPatch.context() as patch:
        at_each_step(patch, copy_root)
        create(root)
    begun = [copy for copy in copies if not (copy / "meta/info.json").exists()]
    assert len(begun) > 3
    for copy in begun:
        with create(copy) as writer:
            record(writer, 0, 2)
        assert lengths(copy) == [2]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_fails_while_resuming_is_named_and_another_try_works(tmp_path: Path, code: int) -> None:
    root = write(tmp_path / "d", (2,), video_codec="h264")
    (root / "data/chunk-000/file-001.parquet").write_bytes(b"half")
    for nth in range(1, 50):
        copy = tmp_path / str(nth)
        shutil.copytree(root, copy)
        with pytest.MonkeyPatch.context() as patch:
            steps = at_each_step(patch, full_at(nth, code))
            try:
                DatasetWriter.resume(copy)
            except WriteError as error:
                assert error.errno == code
            else:
                assert len(steps) < nth
                break
        with DatasetWriter.resume(copy) as writer:
            record(writer, 1, 3)
        assert lengths(copy) == [2, 3]
    assert nth > 8


@pytest.mark.parametrize(
    ("dtype", "every"),
    [
        ("video", 17),
        ("image", 7),
        *(
            pytest.param(dtype, 1, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])
            for dtype in ("video", "image")
        ),
    ],
)
def test_a_power_cut_at_any_moment_costs_no_saved_episode(tmp_path: Path, dtype: str, every: int) -> None:
    root = tmp_path / "d"
    root.mkdir()
    disk = Disk(root)
    saved: list[tuple[int, int]] = []  # how many episodes were saved after so many moments
    with disk.watching():
        with create(root, dtype) as writer:
            for episode in range(2):
                record(writer, episode, 2)
                saved.append((len(disk.moments), episode + 1))
        with DatasetWriter.resume(root) as writer:
            record(writer, 2, 2)
            saved.append((len(disk.moments), 3))
    assert len(disk.moments) > 100
    for index, moment in enumerate(disk.moments):
        if index % every and index < len(disk.moments) - 1:
            continue
        least = max((episodes for moments, episodes in saved if moments <= index), default=0)
        for number, choose in enumerate(outcomes(seed=index)):
            found = tmp_path / f"found-{number}"
            moment.write_to(found, choose)
            where = f"moment {index}: {moment.done}"
            if (found / "meta/info.json").exists():
                meta = LeRobotDatasetMetadata(found)
                assert meta.total_episodes >= least, where
                assert not meta.total_episodes or lengths(found) == [2] * meta.total_episodes
                assert_whole_or_unfinished(found)
                with DatasetWriter.resume(found) as writer:
                    there = writer.num_episodes
            else:
                assert least == 0, where
                create(found, dtype).close()
                there = 0
            assert LeRobotDatasetMetadata(found).total_episodes == there
            shutil.rmtree(found)

"""Edits: the same frames, tasks and statistics under new numbers, and the old dataset untouched until then."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from smolact.datasets import edit
from smolact.datasets.edit import EditPlan
from smolact.datasets.format import DEFAULT_FEATURES
from smolact.datasets.inspection import check_dataset
from smolact.datasets.reader import LeRobotDataset
from smolact.datasets.rewrite import build, replace
from smolact.datasets.sources import Source
from smolact.datasets.writer import DatasetWriter
from smolact.errors import ConfigError, DatasetError, FeatureError
from tests.datasets.make import TASKS, record, write
from tests.datasets.test_video import picture, write_with_b_frames

DATA = Path(__file__).parent.parent / "parity" / "data"
CAMERAS = ("observation.images.top", "observation.images.wrist")


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("roots")
    found = {
        dtype: write(folder / dtype, dtype=dtype, cameras=CAMERAS, video_codec="h264", episodes_per_file=2)
        for dtype in ("video", "image")
    }
    return {**found, "v21": DATA / "dataset_v21", "v30": DATA / "dataset_v30"}


def assert_frames(
    made: Path, parts: Sequence[tuple[Path, Sequence[int]]], without: Sequence[str] = ()
) -> None:
    """That `made` is whole and holds, in order, the frames of these episodes of these datasets."""
    assert check_dataset(made) == []
    new = LeRobotDataset(made, return_uint8=True)
    samples = iter(new)
    for root, episodes in parts:
        for episode in episodes:
            for old in LeRobotDataset(root, episodes=[episode], return_uint8=True):
                sample = next(samples)
                assert sample.keys() == old.keys() - set(without)
                for key, value in sample.items():
                    if key not in ("index", "episode_index", "task_index"):
                        same = torch.equal(value, old[key]) if torch.is_tensor(value) else value == old[key]
                        assert same, key
    with pytest.raises(StopIteration):
        next(samples)


@pytest.mark.parametrize("name", ["video", "image", "v21", "v30"])
def test_deleting_leaves_the_other_episodes_as_they_were(
    roots: dict[str, Path], tmp_path: Path, name: str
) -> None:
    made = build(edit.delete_episodes(Source(roots[name]), [1]), tmp_path / "new")
    total = LeRobotDataset(roots[name]).num_episodes
    assert_frames(made, [(roots[name], [number for number in range(total) if number != 1])])


@pytest.mark.parametrize("name", ["video", "image", "v30"])
def test_a_whole_dataset_keeps_its_statistics(roots: dict[str, Path], tmp_path: Path, name: str) -> None:
    source = Source(roots[name])
    made = build(edit.all_episodes(source), tmp_path / "new")
    assert_frames(made, [(roots[name], range(source.meta.total_episodes))])
    for feature, stats in Source(made).meta.stats.items():
        for statistic, value in stats.items():
            np.testing.assert_array_equal(value, source.meta.stats[feature][statistic])


def test_many_files_become_few(tmp_path: Path) -> None:
    root = write(tmp_path / "set", (3, 4, 5, 2), video_codec="h264")
    before = Source(root)
    assert replace(edit.all_episodes(before)) == root
    assert len(list(root.rglob("data/*/*.parquet"))) == len(list(root.rglob("*.mp4"))) == 1
    assert not list(tmp_path.glob(".tmp-*")) and not (tmp_path / "set.replaced").exists()
    assert Source(root).meta.total_episodes == 4


def test_merging_numbers_tasks_anew_and_adds_up_statistics(roots: dict[str, Path], tmp_path: Path) -> None:
    other = write(tmp_path / "other", (3, 6), dtype="image", cameras=CAMERAS)
    first = build(edit.delete_episodes(Source(roots["image"]), [0, 2]), tmp_path / "second-task-only")
    made = build(edit.merge([Source(first), Source(other)]), tmp_path / "new")
    assert_frames(made, [(first, [0]), (other, [0, 1])])
    assert list(Source(made).meta.tasks.values()) == [TASKS[1], TASKS[0]]
    values = torch.stack([sample["action"] for sample in LeRobotDataset(made)]).double().numpy()
    stats = Source(made).meta.stats["action"]
    np.testing.assert_allclose(stats["mean"], values.mean(axis=0))
    np.testing.assert_allclose(stats["std"], values.std(axis=0))


def test_datasets_of_other_versions_and_codecs_merge(roots: dict[str, Path], tmp_path: Path) -> None:
    made = build(edit.merge([Source(roots["v21"]), Source(roots["v30"])]), tmp_path / "new")
    counts = [LeRobotDataset(roots[name]).num_episodes for name in ("v21", "v30")]
    assert_frames(made, [(roots["v21"], range(counts[0])), (roots["v30"], range(counts[1]))])


def test_splitting_gives_every_episode_to_one_part(roots: dict[str, Path], tmp_path: Path) -> None:
    plans = edit.split(Source(roots["video"]), {"train": 0.67, "test": 0.33})
    for name, plan in plans.items():
        build(plan, tmp_path / name)
    assert_frames(tmp_path / "train", [(roots["video"], [0, 1])])
    assert_frames(tmp_path / "test", [(roots["video"], [2])])


def test_renaming_joins_tasks_and_removing_leaves_a_feature_out(
    roots: dict[str, Path], tmp_path: Path
) -> None:
    made = build(edit.rename_task(Source(roots["video"]), TASKS[0], TASKS[1]), tmp_path / "renamed")
    assert Source(made).meta.tasks == {0: TASKS[1]} and check_dataset(made) == []
    gone = ["next.done", CAMERAS[0]]
    made = build(edit.remove_features(Source(roots["video"]), gone), tmp_path / "removed")
    assert set(Source(made).meta.features) == {CAMERAS[1], "observation.state", "action", *DEFAULT_FEATURES}
    assert_frames(made, [(roots["video"], [0, 1, 2])], without=gone)


def test_only_a_cut_without_a_key_frame_is_encoded_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # This encoder puts key frames at even numbers only, whatever the pictures show.
    camera, root = "observation.image", tmp_path / "set"
    features = {
        camera: {"dtype": "video", "shape": (32, 48, 3)},
        "action": {"dtype": "float32", "shape": (2,)},
    }
    with DatasetWriter.create(
        root, fps=10, features=features, video_codec="libsvtav1", episodes_per_file=3
    ) as writer:
        for first, length in ((0, 7), (7, 4), (11, 5)):
            for number in range(first, first + length):
                picture = np.full((32, 48, 3), 60 + 3 * number, dtype=np.uint8)
                writer.add_frame({camera: picture, "action": np.zeros(2, np.float32)}, task="Wait.")
            writer.save_episode()
    made = build(edit.delete_episodes(Source(root), [0]), tmp_path / "new")
    assert "2 of 2 episodes can't be cut out" in caplog.text
    new, old = LeRobotDataset(made), LeRobotDataset(root, episodes=[1, 2])
    for sample, before in zip(new, old, strict=True):
        assert (sample[camera] - before[camera]).abs().mean() < 0.005


@pytest.mark.parametrize(
    ("lengths", "again"), [((10, 10, 4), False), ((7, 6, 11), True), ((10, 3, 11), True)]
)
def test_a_video_with_frames_out_of_order_is_cut_at_the_right_frames(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, lengths: tuple[int, ...], again: bool
) -> None:
    """B-frames, as other tools' encoders write them, and key frames at 0, 10 and 20 only."""
    camera, root = "observation.image", tmp_path / "set"
    features = {
        camera: {"dtype": "video", "shape": (32, 48, 3)},
        "action": {"dtype": "float32", "shape": (1,)},
    }
    with DatasetWriter.create(
        root, fps=10, features=features, video_codec="h264", episodes_per_file=3
    ) as writer:
        pictures = iter(picture(number) for number in range(sum(lengths)))
        for length in lengths:
            for _ in range(length):
                writer.add_frame({camera: next(pictures), "action": np.zeros(1, np.float32)}, task="Wait.")
            writer.save_episode()
    write_with_b_frames(next(root.rglob("*.mp4")))
    old = LeRobotDataset(root, return_uint8=True)
    every = torch.stack([sample[camera] for sample in old]).double()
    for name, plan, first in (
        ("whole", edit.all_episodes(Source(root)), 0),
        ("less", edit.delete_episodes(Source(root), [0]), lengths[0]),
        ("twice", edit.merge([Source(root), Source(root)]), 0),
    ):
        new = LeRobotDataset(build(plan, tmp_path / name), return_uint8=True)
        for number, sample in enumerate(new):
            distances = (every - sample[camera].double()).abs().mean((1, 2, 3))
            assert distances.argmin() == (first + number) % len(every)
            assert distances.min() < 4 * again + 1e-9
    assert ("encoded again" in caplog.text) == again


def test_how_it_was_recorded_goes_with_each_episode(tmp_path: Path) -> None:
    root = write(tmp_path / "set", (2, 3, 4, 5), "image")
    log, counts = root / "meta/smolact_recording.json", "meta/smolact_image_counts.json"
    rows = [
        {"episode_index": number, "task": TASKS[number % 2], "frames": number + 2} for number in (0, 2, 3)
    ]
    log.write_text(json.dumps({"episodes": rows}))
    source = Source(root)

    def kept(plan: EditPlan, name: str) -> list[list[Any]]:
        made = build(plan, tmp_path / name, quick=True)
        assert (made / counts).is_file() == (name in ("whole", "named"))
        if not (made / log.relative_to(root)).is_file():
            return []
        return [
            list(row.values()) for row in json.loads((made / log.relative_to(root)).read_text())["episodes"]
        ]

    assert kept(edit.all_episodes(source), "whole") == [[0, TASKS[0], 2], [2, TASKS[0], 4], [3, TASKS[1], 5]]
    assert kept(edit.delete_episodes(source, [0]), "less") == [[1, TASKS[0], 4], [2, TASKS[1], 5]]
    assert kept(edit.delete_episodes(source, [0, 2, 3]), "none") == []
    assert [row[0] for row in kept(edit.merge([source, source]), "twice")] == [0, 2, 3, 4, 6, 7]
    named = edit.rename_task(source, TASKS[0], "Do it.")
    assert [row[1] for row in kept(named, "named")] == ["Do it.", "Do it.", TASKS[1]]
    cameras = {"observation.images.top": "video"}
    assert len(kept(dataclasses.replace(edit.all_episodes(source), cameras=cameras), "video")) == 3
    with DatasetWriter.resume(tmp_path / "whole") as writer, DatasetWriter.resume(root) as straight:
        for one in (writer, straight):
            record(one, 4, 3)
    same = [(path / counts).read_bytes() for path in (root, tmp_path / "whole")]
    assert same[0] == same[1]


@pytest.mark.parametrize("name", ["video", "image", "v30", "v21"])
def test_to_v21_and_back_gives_the_same_frames(roots: dict[str, Path], tmp_path: Path, name: str) -> None:
    source = Source(roots[name])
    old = build(dataclasses.replace(edit.all_episodes(source), version="v2.1"), tmp_path / "old")
    episodes = range(source.meta.total_episodes)
    assert_frames(old, [(roots[name], episodes)])
    assert_frames(build(edit.all_episodes(Source(old)), tmp_path / "again"), [(roots[name], episodes)])


@pytest.mark.parametrize(
    "values",
    [[{}], [2**70], [2**63], [{"a": {}}], [[{}]], ["\ud800"], [1, "a"]],
    ids=["empty", "large", "unsigned", "empty-inside", "empty-in-list", "surrogate", "mixed"],
)
def test_what_no_column_can_hold_is_named(tmp_path: Path, values: list[Any]) -> None:
    root = Path(shutil.copytree(DATA / "dataset_v21", tmp_path / "set"))
    path = root / "meta/episodes.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    said = [{**row, "of mine": values[number % len(values)]} for number, row in enumerate(rows)]
    path.write_text("".join(json.dumps(row) + "\n" for row in said))
    plan = dataclasses.replace(edit.all_episodes(Source(root)), version="v3.0")
    message = r"as 'of mine' can't be kept in a column \(.*take it out of meta/episodes\.jsonl"
    with pytest.raises(DatasetError, match=message):
        build(plan, tmp_path / "new", quick=True)
    assert not (tmp_path / "new").exists()


def test_video_to_images_and_images_to_video(roots: dict[str, Path], tmp_path: Path) -> None:
    source = Source(roots["video"])
    plan = dataclasses.replace(edit.all_episodes(source), cameras=dict.fromkeys(CAMERAS, "image"))
    assert_frames(build(plan, tmp_path / "images"), [(roots["video"], range(3))])
    plan = dataclasses.replace(
        edit.all_episodes(Source(roots["image"])), cameras=dict.fromkeys(CAMERAS, "video")
    )
    made = LeRobotDataset(build(plan, tmp_path / "videos"))
    for sample, before in zip(made, LeRobotDataset(roots["image"]), strict=True):
        assert (sample[CAMERAS[0]] - before[CAMERAS[0]]).abs().mean() < 0.05


def test_statistics_are_computed_from_the_frames(roots: dict[str, Path], tmp_path: Path) -> None:
    source = Source(roots["image"])
    made = build(dataclasses.replace(edit.all_episodes(source), recompute=True), tmp_path / "new")
    for feature, stats in Source(made).meta.stats.items():
        for statistic in ("min", "max", "mean", "std", "count"):
            np.testing.assert_allclose(stats[statistic], source.meta.stats[feature][statistic], atol=1e-7)


def test_a_damaged_source_leaves_everything_as_it_was(roots: dict[str, Path], tmp_path: Path) -> None:
    root = Path(shutil.copytree(roots["video"], tmp_path / "set"))
    video = next(root.rglob("*.mp4"))
    video.write_bytes(video.read_bytes()[:-200])
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    with pytest.raises(DatasetError):
        replace(edit.all_episodes(Source(root)))
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_impossible_edits_are_refused(roots: dict[str, Path], tmp_path: Path) -> None:
    source = Source(roots["video"])
    for call, part in (
        (lambda: edit.delete_episodes(source, [3]), "There is no episode 3"),
        (lambda: edit.delete_episodes(source, [0, 1, 2]), "Nothing would be left"),
        (lambda: edit.split(source, {"a": 0.7, "b": 0.7}), "all together at most 1"),
        (lambda: edit.split(source, {"a": [0], "b": [0]}), "in two parts"),
        (lambda: edit.rename_task(source, "Push", "x"), "has no task 'Push'"),
        (lambda: edit.rename_task(source, TASKS[0], " "), "The new task is empty"),
        (lambda: edit.remove_features(source, ["index"]), "no feature of"),
        (lambda: edit.merge([source]), "two datasets or more"),
        (lambda: build(edit.all_episodes(source), tmp_path), "exists already"),
    ):
        with pytest.raises(ConfigError, match=part):
            call()
    with pytest.raises(FeatureError, match="differ in"):
        edit.merge([source, Source(roots["image"])])
    assert isinstance(edit.all_episodes(source), EditPlan)


@pytest.mark.parametrize("calls", range(4))
def test_stopping_at_any_point_leaves_the_old_dataset(
    roots: dict[str, Path], tmp_path: Path, calls: int
) -> None:
    root = Path(shutil.copytree(roots["video"], tmp_path / "set"))
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    left = iter(range(2 * calls + 1))

    def stop(what: str, done: int, total: int) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replace(edit.delete_episodes(Source(root), [2]), progress=stop)
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_what_is_beside_the_dataset_is_taken_along(roots: dict[str, Path], tmp_path: Path) -> None:
    root = Path(shutil.copytree(roots["image"], tmp_path / "set"))
    (root / "unfinished-001").mkdir()
    (root / "unfinished-001/some.mp4").write_bytes(b"mine")
    replace(edit.delete_episodes(Source(root), [0]))
    assert (root / "unfinished-001/some.mp4").read_bytes() == b"mine"
    (tmp_path / "set.replaced").mkdir()
    with pytest.raises(ConfigError, match="an edit that was killed at its very end"):
        replace(edit.delete_episodes(Source(root), [0]))

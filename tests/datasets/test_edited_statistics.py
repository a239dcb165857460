"""Statistics after edits: of the frames that are there, and untouched where no value changed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from smolact.cli.main import main
from smolact.datasets import edit
from smolact.datasets.edit import EditPlan
from smolact.datasets.format import QUANTILES
from smolact.datasets.metadata import LeRobotDatasetMetadata
from smolact.datasets.repair import repair
from smolact.datasets.rewrite import build, replace
from smolact.datasets.sources import Source
from smolact.datasets.stats import aggregate, vector_statistics
from smolact.datasets.writer import DatasetWriter
from tests.datasets.make import TASKS

CAMERA = "observation.images.top"
FRAMES = 200


def two_ranges(root: Path, ranges: tuple[float, ...] = (0, 100), dtype: str = "image") -> Path:
    """Episodes whose actions are uniform in [low, low + 1], and whose pictures are dark or bright."""
    features = {
        CAMERA: {"dtype": dtype, "shape": (16, 16, 3)},
        "action": {"dtype": "float32", "shape": (2,)},
    }
    with DatasetWriter.create(root, fps=10, features=features, video_codec="h264") as writer:
        for episode, low in enumerate(ranges):
            rng = np.random.default_rng(int(low))
            for value in rng.uniform(low, low + 1, (FRAMES, 2)).astype(np.float32):
                picture = np.full((16, 16, 3), 20 + int(low), np.uint8)
                writer.add_frame({CAMERA: picture, "action": value}, task=TASKS[episode % 2])
            writer.save_episode()
    return root


def values_of(root: Path, name: str) -> np.ndarray[Any, Any]:
    tables = [pq.read_table(path) for path in sorted((root / "data").rglob("*.parquet"))]
    return np.concatenate([np.stack(table[name].to_numpy()) for table in tables]).astype(np.float64)


def assert_exact(root: Path, name: str = "action") -> None:
    stats, values = LeRobotDatasetMetadata(root).stats[name], values_of(root, name)
    for statistic, quantile in QUANTILES.items():
        expected = np.atleast_1d(np.quantile(values, quantile, axis=0, method="inverted_cdf"))
        np.testing.assert_array_equal(stats[statistic], expected, err_msg=statistic)
    for statistic, function in {"min": np.min, "max": np.max, "mean": np.mean, "std": np.std}.items():
        np.testing.assert_allclose(stats[statistic], np.atleast_1d(function(values, axis=0)), rtol=1e-9)
    assert stats["count"] == len(values)


def spoil(root: Path, name: str = "action") -> Path:
    """Give a feature quantiles that are recognizable, as another tool might have averaged them."""
    path = root / "meta/stats.json"
    stats = json.loads(path.read_text())
    stats[name] |= {"q01": [50.01, 50.01], "q99": [50.99, 50.99]}
    path.write_text(json.dumps(stats))
    return root


def test_computed_statistics_are_those_of_all_frames_not_averages_of_episodes(tmp_path: Path) -> None:
    root = spoil(two_ranges(tmp_path / "set"))
    assert main(["dataset", "stats", f"--dataset.root={root}"]) == 0
    for name in ("action", "index", "timestamp", "task_index"):
        assert_exact(root, name)
    stats = LeRobotDatasetMetadata(root).stats
    assert stats["action"]["q01"].max() < 1.0 and stats["action"]["q99"].min() > 100.0
    for statistic, level in {"q01": 20, "q50": 20, "q90": 120, "q99": 120}.items():
        np.testing.assert_allclose(stats[CAMERA][statistic].ravel(), level / 255)


@pytest.mark.parametrize(
    "way", ["delete", "filter", "split", "merge", "v2.1 and back", "v2.1 less", "reordered"]
)
def test_vectors_of_an_edited_dataset_are_counted_from_its_frames(tmp_path: Path, way: str) -> None:
    source = Source(two_ranges(tmp_path / "set", (0, 100, 50)))
    plans = {
        "delete": edit.delete_episodes(source, [2]),
        "filter": edit.select_episodes(
            source, [number for number in range(source.meta.total_episodes) if number != 2]
        ),
        "split": edit.split(source, {"part": [0, 1]})["part"],
        "merge": edit.merge([source, Source(two_ranges(tmp_path / "other", (7,)))]),
        "reordered": EditPlan((source,), ((0, 1), (0, 0))),
    }
    if way.startswith("v2.1"):
        episodes = ((0, 0), (0, 1)) if way == "v2.1 less" else ((0, 0), (0, 1), (0, 2))
        old = build(EditPlan((source,), episodes, version="v2.1"), tmp_path / "old")
        made = build(edit.all_episodes(Source(old)), tmp_path / "new")
    else:
        made = build(plans[way], tmp_path / "new")
    for name in ("action", "index", "episode_index", "task_index", "timestamp"):
        assert_exact(made, name)


def test_quantiles_of_cameras_that_nobody_looked_at_again_are_bounds(tmp_path: Path) -> None:
    source = Source(two_ranges(tmp_path / "set", (0, 100, 50)))
    stats = LeRobotDatasetMetadata(build(edit.delete_episodes(source, [2]), tmp_path / "new")).stats[CAMERA]
    for statistic, level in {"min": 20, "q01": 20, "q50": 20, "q90": 120, "q99": 120, "max": 120}.items():
        np.testing.assert_allclose(stats[statistic].ravel(), level / 255)
    np.testing.assert_allclose(stats["mean"].ravel(), 70 / 255)
    np.testing.assert_allclose(stats["std"].ravel(), 50 / 255)


@pytest.mark.parametrize("way", ["rename", "join", "compact", "remove", "other form"])
def test_what_changes_no_value_leaves_its_statistics_alone(tmp_path: Path, way: str) -> None:
    root = spoil(two_ranges(tmp_path / "set"))
    source = Source(root)
    before = source.meta.stats
    plans = {
        "rename": edit.rename_task(source, TASKS[0], "Another text."),
        "join": edit.rename_task(source, TASKS[0], TASKS[1]),
        "compact": edit.all_episodes(source),
        "remove": edit.remove_features(source, [CAMERA]),
        "other form": dataclasses.replace(edit.all_episodes(source), cameras={CAMERA: "video"}),
    }
    replace(plans[way])
    after = LeRobotDatasetMetadata(root).stats
    changed = {"task_index"} if way == "join" else set()
    assert after.keys() == before.keys() - ({CAMERA} if way == "remove" else set())
    for name in after.keys() - changed:
        for statistic, value in before[name].items():
            np.testing.assert_array_equal(after[name][statistic], value, err_msg=f"{name} {statistic}")
    if changed:
        assert_exact(root, "task_index")


def test_repaired_statistics_are_counted_from_the_frames(tmp_path: Path) -> None:
    root = two_ranges(tmp_path / "set", (0, 100, 50))
    last = root / "data/chunk-000/file-002.parquet"
    last.write_bytes(last.read_bytes()[:-10])
    (root / "meta/stats.json").unlink()
    assert not repair(root).rewritten
    for name in ("action", "index", "timestamp"):
        assert_exact(root, name)


def test_bounds_hold_the_true_quantiles_between_them() -> None:
    rng = np.random.default_rng(0)
    parts = [rng.normal(mean, 1 + mean, (50 + 30 * number, 3)) for number, mean in enumerate((0, 5, 1))]
    together = aggregate([{"action": vector_statistics(part)} for part in parts])["action"]
    exact = vector_statistics(np.concatenate(parts))
    for name, quantile in QUANTILES.items():
        assert ((together[name] <= exact[name]) if quantile <= 0.5 else (together[name] >= exact[name])).all()


def test_blocks_of_a_wide_column_are_counted_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(size=(40, 2, 5)).astype(np.float32)
    whole = vector_statistics(values)
    monkeypatch.setattr("smolact.datasets.stats._SORTED_AT_ONCE", 80)  # two of the ten dimensions at a time
    for name, value in vector_statistics(values).items():
        np.testing.assert_allclose(value, whole[name], rtol=1e-12)
        assert value.shape == ((1,) if name == "count" else (2, 5))

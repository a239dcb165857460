"""`check_dataset`: nothing to say of a whole dataset, a named fault for each thing that is wrong."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from smolact.datasets import edit
from smolact.datasets.faults import Fault
from smolact.datasets.inspection import check_dataset
from smolact.datasets.rewrite import build
from smolact.datasets.sources import Source
from tests.datasets.make import write

DATA = Path(__file__).parent.parent / "parity" / "data"
FIRST = "data/chunk-000/file-000.parquet"
VIDEO = "videos/observation.images.top/chunk-000/file-000.mp4"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("whole")
    return {dtype: write(folder / dtype, dtype=dtype, video_codec="h264") for dtype in ("video", "image")}


@pytest.fixture
def root(whole: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole["video"], tmp_path / "set"))


def errors(root: Path, **options: Any) -> list[Fault]:
    return [fault for fault in check_dataset(root, **options) if fault.severity == "error"]


def change_table(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    pq.write_table(change(pq.read_table(path)), path)


def with_column(name: str, values: Any) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        place = table.schema.get_field_index(name)
        return table.set_column(place, name, pa.array(values, type=table.schema.field(name).type))

    return change


def test_whole_datasets_have_no_fault(whole: dict[str, Path]) -> None:
    for folder in (*whole.values(), DATA / "dataset_v21", DATA / "dataset_v30"):
        assert check_dataset(folder) == []


@pytest.mark.parametrize(
    ("name", "values", "part"),
    [
        ("frame_index", range(1, 8), "frame_index is 1 in row 0, expected 0"),
        ("index", range(1, 8), "index is 1 in row 0, expected 0"),
        ("episode_index", [1] * 7, "expected 7 rows, found 0"),
        ("timestamp", [0.0] * 7, "expected 0.6 at 10 frames a second"),
        ("task_index", [9] * 7, "task_index 9 is no task"),
        ("action", [[np.nan, 0.0]] * 7, "'action' is not finite (or beyond 1e+150) in row 0 (episode 0)"),
        ("action", [[90.0, 0.0]] * 7, "'action' has other values than its statistics say"),
    ],
)
def test_a_wrong_column_is_named(root: Path, name: str, values: Any, part: str) -> None:
    change_table(root / FIRST, with_column(name, list(values)))
    found = errors(root, quick=True)
    assert any(part in str(fault) for fault in found), found


def test_a_column_that_can_not_be_read_hides_no_other_fault(root: Path) -> None:
    change_table(root / FIRST, with_column("action", [None] * 7))
    change_table(root / FIRST, with_column("observation.state", [[np.inf] * 4] * 7))
    found = [fault for fault in errors(root, quick=True) if fault.location == FIRST]
    assert [("'action'" in fault.message, "'observation.state'" in fault.message) for fault in found] == [
        (False, True),
        (True, False),
    ]
    assert [fault.episodes for fault in found] == [(0,), (0,)]


def test_missing_rows_and_a_cut_video_are_found(root: Path) -> None:
    change_table(root / FIRST, lambda table: table.slice(0, 5))
    path = root / VIDEO
    path.write_bytes(path.read_bytes()[:-400])
    places = {fault.location for fault in errors(root)}
    assert {FIRST, VIDEO} <= places


def test_only_the_whole_check_decodes(root: Path) -> None:
    path = root / VIDEO
    content = bytearray(path.read_bytes())
    start = content.index(b"mdat") + 4
    content[start : start + 600] = b"\x01" * 600
    path.write_bytes(content)
    assert not errors(root, quick=True)
    assert [fault.location for fault in errors(root)] == [VIDEO]


def test_damaged_images_are_named(whole: dict[str, Path], tmp_path: Path) -> None:
    root = Path(shutil.copytree(whole["image"], tmp_path / "set"))
    bad = [{"bytes": b"\x89PNG broken", "path": None}] * 7
    change_table(root / FIRST, with_column("observation.images.top", bad))
    assert len(errors(root)) == 7
    assert not errors(root, quick=True)


@pytest.mark.parametrize(
    ("stats", "part"),
    [
        (lambda stats: stats.pop("action"), "has no min, max, mean, std of 'action'"),
        (lambda stats: stats["action"].update(std=[-1.0, 1.0]), "negative std"),
        (lambda stats: stats["action"].update(mean=[0.0]), "expected finite numbers of the shape (2,)"),
        (lambda stats: stats["action"].update(mean=[1e9, 0.0]), "mean outside its min and max"),
    ],
)
def test_wrong_statistics_are_named(root: Path, stats: Callable[[Any], Any], part: str) -> None:
    path = root / "meta/stats.json"
    value = json.loads(path.read_text())
    stats(value)
    path.write_text(json.dumps(value))
    assert any(part in str(fault) for fault in errors(root, quick=True))


def test_what_lies_outside_the_root_is_not_opened(root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.parquet"
    (root / FIRST).rename(outside)
    (root / FIRST).symlink_to(outside)
    (fault,) = check_dataset(root)
    assert fault.location == FIRST and "leads out of the folder" in fault.message


def test_leftovers_are_warnings(root: Path) -> None:
    (root / "data/chunk-000/file-009.parquet").write_bytes(b"PAR1")
    (root / ".tmp-1-staging").mkdir()
    found = check_dataset(root)
    assert [fault.severity for fault in found] == ["warning"] * 2


def test_a_dataset_made_anew_has_no_leftovers(root: Path, tmp_path: Path) -> None:
    change_table(root / FIRST, with_column("task_index", [0, 0, 0, 1, 1, 1, 1]))
    (root / "data/chunk-000/file-009.parquet").write_bytes(b"PAR1")
    assert len(check_dataset(root, quick=True)) >= 2
    made = build(dataclasses.replace(edit.all_episodes(Source(root)), recompute=True), tmp_path / "new")
    assert check_dataset(made) == []
    assert Source(made).meta.episodes.tasks[0] == ("Push the red block.", "Put it on the plate.")


@pytest.mark.parametrize("seed", range(60))
def test_random_damage_is_told_and_never_crashes(root: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    path = rng.choice(sorted(path for path in root.rglob("*") if path.is_file()))
    content = bytearray(path.read_bytes())
    if seed % 2:
        content = content[: rng.integers(len(content))]
    else:
        for place in rng.integers(len(content), size=rng.integers(1, 12)):
            content[place] = rng.integers(256)
    path.write_bytes(content)
    for fault in check_dataset(root):
        assert fault.location and fault.message

"""Rows may lie in any order in the data files: their numbers say which frame they are, and everything that reads goes by these."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from smolact.datasets import edit
from smolact.datasets.frame_cache import FrameCache
from smolact.datasets.inspection import check_dataset
from smolact.datasets.outcomes import successes
from smolact.datasets.reader import LeRobotDataset
from smolact.datasets.repair import repair
from smolact.datasets.rewrite import build, replace
from smolact.datasets.sources import Source
from smolact.datasets.viz import describe_episode
from smolact.datasets.writer import DatasetWriter
from smolact.recording.replay import read_actions
from tests.datasets.damages import change
from tests.datasets.make import record, write

FILES = [f"data/chunk-000/file-{number:03d}.parquet" for number in range(2)]
TABLE = "meta/episodes/chunk-000/file-000.parquet"
LENGTHS = (7, 4, 5)


def episodes_backwards(root: Path) -> list[str]:
    change(root / FILES[0], lambda table: table.take([*range(11, 16), *range(7, 11), *range(7)]))
    return FILES[:1]


def rows_at_random(root: Path) -> list[str]:
    change(root / FILES[0], lambda table: table.take(np.random.default_rng(0).permutation(16)))
    return FILES[:1]


def move_to_second_file(root: Path, episodes: list[int]) -> None:
    table = pq.read_table(root / FILES[0])
    second = pa.compute.is_in(table["episode_index"], pa.array(episodes))
    pq.write_table(table.filter(second), root / FILES[1])
    pq.write_table(table.filter(pa.compute.invert(second)), root / FILES[0])

    def say(rows: pa.Table) -> pa.Table:
        files = [int(number in episodes) for number in rows["episode_index"].to_pylist()]
        return rows.set_column(
            rows.schema.get_field_index("data/file_index"), "data/file_index", pa.array(files, pa.int64())
        )

    change(root / TABLE, say)


def first_episode_in_the_second_file(root: Path) -> list[str]:
    move_to_second_file(root, [0])
    return FILES


def an_episode_between_in_the_second_file(root: Path) -> list[str]:
    move_to_second_file(root, [1])
    return FILES


SHUFFLES = [
    episodes_backwards,
    rows_at_random,
    first_episode_in_the_second_file,
    an_episode_between_in_the_second_file,
]


@pytest.fixture(scope="module")
def wholes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("whole")
    return {
        dtype: write(folder / dtype, LENGTHS, dtype, video_codec="h264", episodes_per_file=3)
        for dtype in ("video", "image")
    }


Case = tuple[Path, Path, list[str]]


@pytest.fixture(params=[(dtype, shuffle) for dtype in ("video", "image") for shuffle in SHUFFLES])
def case(request: pytest.FixtureRequest, wholes: dict[str, Path], tmp_path: Path) -> Case:
    """A dataset in order, the same in another order, and the files that are then out of order."""
    dtype, shuffle = request.param
    root = Path(shutil.copytree(wholes[dtype], tmp_path / "set"))
    return wholes[dtype], root, shuffle(root)


def assert_same(root: Path, ordered: Path, episodes: list[int] | None = None) -> None:
    found = LeRobotDataset(root, episodes=episodes, return_uint8=True)
    wanted = LeRobotDataset(ordered, episodes=episodes, return_uint8=True)
    assert len(found) == len(wanted)
    for sample, expected in zip(found, wanted, strict=True):
        for key, value in expected.items():
            assert torch.equal(sample[key], value) if torch.is_tensor(value) else sample[key] == value, key


@pytest.mark.parametrize("episodes", [None, [0, 1, 2], [0, 2], [1]])
def test_a_sample_has_its_own_state_and_picture(case: Case, episodes: list[int] | None) -> None:
    ordered, root, _ = case
    assert_same(root, ordered, episodes)


def test_check_names_the_files_and_compact_puts_them_in_order(case: Case, tmp_path: Path) -> None:
    ordered, root, files = case
    faults = check_dataset(root)
    assert [(fault.severity, fault.location) for fault in faults] == [("warning", file) for file in files]
    assert "another order" in faults[0].message and "smolact dataset compact" in faults[0].message
    replace(edit.all_episodes(Source(root)))
    assert check_dataset(root) == []
    assert_same(root, ordered)
    assert pq.read_table(root / FILES[0])["index"].to_pylist() == list(range(16))


def test_an_edit_takes_the_rows_of_the_right_episodes(case: Case, tmp_path: Path) -> None:
    ordered, root, _ = case
    made = build(edit.delete_episodes(Source(root), [1]), tmp_path / "shuffled")
    assert_same(made, build(edit.delete_episodes(Source(ordered), [1]), tmp_path / "ordered"))
    assert check_dataset(made) == []


def test_repair_keeps_every_episode(case: Case) -> None:
    ordered, root, _ = case
    done = repair(root)
    assert (done.episodes, done.errors) == (3, ())
    assert_same(root, ordered)


def test_what_reads_an_episode_by_itself_reads_it_in_order(case: Case) -> None:
    ordered, root, _ = case
    source, expected = Source(root), Source(ordered)
    for episode in range(3):
        assert read_actions(root, episode)[0].tolist() == read_actions(ordered, episode)[0].tolist()
        assert describe_episode(source, episode, ["action"]) == describe_episode(
            expected, episode, ["action"]
        )
        pictures = zip(
            *(s.images("observation.images.top", episode) for s in (source, expected)), strict=True
        )
        assert all((one == other).all() for one, other in pictures)


def test_the_last_frame_says_how_an_episode_ended(wholes: dict[str, Path], tmp_path: Path) -> None:
    root = Path(shutil.copytree(wholes["image"], tmp_path / "set"))

    def succeed(table: pa.Table) -> pa.Table:
        return table.rename_columns(
            [name.replace("next.done", "next.success") for name in table.column_names]
        )

    for path in (root / FILES[0], root / TABLE):
        change(path, succeed)
    for name in ("meta/info.json", "meta/stats.json"):
        (root / name).write_text((root / name).read_text().replace("next.done", "next.success"))
    rows_at_random(root)
    assert successes(Source(root)) == [True, True, True]


def test_recording_goes_on_with_the_same_statistics(case: Case, tmp_path: Path) -> None:
    ordered, root, _ = case
    other = Path(shutil.copytree(ordered, tmp_path / "other"))
    for folder in (root, other):
        with DatasetWriter.resume(folder) as writer:
            record(writer, 3, 4)
    assert (root / "meta/stats.json").read_bytes() == (other / "meta/stats.json").read_bytes()
    assert_same(root, other)


def test_the_frame_cache_keeps_each_picture_at_its_place(case: Case, tmp_path: Path) -> None:
    ordered, root, _ = case
    dataset = LeRobotDataset(root, return_uint8=True)
    FrameCache(dataset.meta, folder=tmp_path / "cache").fill(dataset)
    key = "observation.images.top"
    for sample, expected in zip(dataset, LeRobotDataset(ordered, return_uint8=True), strict=True):
        assert torch.equal(sample[key], expected[key])


Change = Callable[[pa.Table], pa.Table]


@pytest.mark.parametrize(
    "spoil",
    [lambda table: table.take([0, 0, *range(2, 16)]), lambda table: table.slice(1)],
    ids=["twice", "missing"],
)
def test_a_frame_that_is_there_twice_or_missing_is_named(
    wholes: dict[str, Path], tmp_path: Path, spoil: Change
) -> None:
    root = Path(shutil.copytree(wholes["image"], tmp_path / "set"))
    change(root / FILES[0], spoil)
    with pytest.raises(Exception, match="episode 0 should have 7 frames"):
        LeRobotDataset(root)
    assert any(fault.severity == "error" for fault in check_dataset(root))

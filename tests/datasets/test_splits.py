"""The named splits of a dataset stay with their episodes: in edits, when recording goes on, and when a crash took episodes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from smolact.datasets import edit
from smolact.datasets.repair import repair
from smolact.datasets.rewrite import build
from smolact.datasets.sources import Source
from smolact.datasets.splits import extended, subset
from smolact.datasets.writer import DatasetWriter
from tests.datasets.damages import count, without_footer
from tests.datasets.make import record, write


def named(root: Path, splits: Any) -> Path:
    path = root / "meta/info.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "splits": splits}))
    return root


def splits_of(root: Path) -> Any:
    return json.loads((root / "meta/info.json").read_text())["splits"]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"train": "0:3"}, {"train": "0:5"}),
        ({"train": "0:2", "val": "2:3"}, {"train": "0:2", "val": "2:3"}),
        ({"val": "0:1", "train": "1:3"}, {"val": "0:1", "train": "1:5"}),
        ({"train": "0:2"}, {"train": "0:2"}),
        ({"held out": "0:3"}, {"held out": "0:3"}),
        ({"train": "80%", "val": "20%"}, {"train": "80%", "val": "20%"}),
        ({"train": "0:9"}, {"train": "0:5"}),  # somebody took episodes out without a word
        (None, {"train": "0:5"}),
    ],
)
def test_recording_on_keeps_named_splits(tmp_path: Path, before: Any, after: Any) -> None:
    root = named(write(tmp_path / "set", (2, 2, 2), "image"), before)
    with DatasetWriter.resume(root) as writer:
        for episode in (3, 4):
            record(writer, episode, 2)
    assert splits_of(root) == after


def test_episodes_of_no_split_stay_so_in_an_edit(tmp_path: Path) -> None:
    root = named(write(tmp_path / "set", (2, 2, 2), "image"), {"train": "0:2", "val": "2:3"})
    with DatasetWriter.resume(root) as writer:
        record(writer, 3, 2)
    made = build(edit.delete_episodes(Source(root), [0]), tmp_path / "new", quick=True)
    assert splits_of(made) == {"train": "0:1", "val": "1:2"}


@pytest.mark.parametrize(
    ("damaged", "anew", "after"),
    [
        (2, False, {"train": "0:1", "val": "1:2"}),
        (1, True, {"train": "0:1", "test": "1:2"}),
    ],
)
def test_repair_cuts_named_splits_to_what_is_whole(
    tmp_path: Path, damaged: int, anew: bool, after: dict[str, str]
) -> None:
    before = {"train": "0:1", "val": "1:2", "test": "2:3"}
    root = named(write(tmp_path / "set", (2, 2, 2), "image"), before)
    without_footer(root / f"data/chunk-000/file-{damaged:03d}.parquet")
    assert repair(root).rewritten is anew
    assert splits_of(root) == after
    assert not repair(root).needed


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"train": "0:1", "val": "1:2"}, {"train": "0:1", "val": "1:2"}),
        ({"val": "0:1", "train": "1:2"}, {"val": "0:1", "train": "1:3"}),
        ({"train": "0:2", "val": "2:3"}, {"train": "0:2", "val": "2:3"}),  # they knew more than the count
    ],
)
def test_an_episode_that_repair_finds_joins_as_a_recorded_one(
    tmp_path: Path, before: dict[str, str], after: dict[str, str]
) -> None:
    root = named(write(tmp_path / "set", (2, 2, 2), "image"), before)
    count(root, total_episodes=2, total_frames=4)
    assert repair(root).episodes == 3
    assert splits_of(root) == after


def test_splits_that_are_no_ranges_are_left_or_become_one() -> None:
    for splits in ([], "all", {}, 3):
        assert extended({"total_episodes": 2, "splits": splits}, 3) == {"train": "0:3"}
    for text in ("0:2:1", "-1:2", "0:" + "9" * 5000, None, [0, 2]):
        info = {"total_episodes": 2, "splits": {"train": "0:1", "val": text}}
        assert extended(info, 3) == info["splits"]
        assert subset(info, [1]) == {"train": "0:1"}
    assert subset({"total_episodes": 3, "splits": {"train": "0:1", "val": "1:3"}}, [2, 0]) == {"train": "0:2"}
    assert subset({"total_episodes": 3, "splits": {"train": "0:1", "val": "1:3"}}, []) == {"train": "0:0"}

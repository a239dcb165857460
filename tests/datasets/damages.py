"""Datasets that a crash has left, and what of them is whole."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from smolact.datasets.inspection import check_dataset
from smolact.datasets.metadata import LeRobotDatasetMetadata
from smolact.datasets.reader import LeRobotDataset
from tests.datasets.make import write

LENGTHS = (3, 2, 4)


class Damage(NamedTuple):
    """To which of the seeds it is done, how, which episodes are whole then, and whether a repair has to make all anew."""

    seed: str
    inflict: Callable[[Path], object]
    episodes: list[int]
    anew: bool


def make_seeds(folder: Path) -> dict[str, Path]:
    """Whole datasets: a video an episode, one video of all, images."""
    return {
        "video": write(folder / "video", LENGTHS, video_codec="h264"),
        "joined": write(folder / "joined", LENGTHS, video_codec="h264", episodes_per_file=3),
        "image": write(folder / "image", LENGTHS, "image"),
    }


def copy(root: Path, to: Path) -> Path:
    return Path(shutil.copytree(root, to))


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def has_the_episodes(root: Path, old: Path, episodes: list[int]) -> None:
    """Whether `root` is whole, and its episodes are, in order, these of `old`."""
    assert [fault for fault in check_dataset(root) if fault.severity == "error"] == []
    assert LeRobotDatasetMetadata(root).total_episodes == len(episodes)
    if not episodes:
        return
    new, before = (
        LeRobotDataset(root, return_uint8=True),
        LeRobotDataset(old, episodes=episodes, return_uint8=True),
    )
    for sample, expected in zip(new, before, strict=True):
        for key in ("action", "frame_index", "task", "observation.images.top"):
            value = sample[key]
            assert torch.equal(value, expected[key]) if torch.is_tensor(value) else value == expected[key]


def change(path: Path, edit: Callable[[pa.Table], pa.Table]) -> None:
    table = edit(pq.read_table(path))
    pq.write_table(table, path)


def count(root: Path, **values: int) -> None:
    path = root / "meta/info.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def without_footer(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def cut_the_last_video(root: Path) -> None:
    path = root / "videos/observation.images.top/chunk-000/file-002.mp4"
    path.write_bytes(path.read_bytes()[:-300])


def die_as_lerobot(root: Path) -> None:
    """Its last session wrote episode 2: counted, staged, and neither parquet file has its footer."""
    without_footer(root / "data/chunk-000/file-002.parquet")
    without_footer(root / "meta/episodes/chunk-000/file-002.parquet")
    staged = root / "images/observation.images.top/episode-000003"
    staged.mkdir(parents=True)
    (staged / "frame-000000.png").write_bytes(b"picture")
    (root / "tmpab12_xyz").mkdir()
    (root / "tmpab12_xyz/top_003.mp4").write_bytes(b"film")


DAMAGES = [
    Damage("video", die_as_lerobot, [0, 1], False),
    Damage("video", cut_the_last_video, [0, 1], False),
    Damage("video", lambda root: count(root, total_episodes=5, total_frames=20), [0, 1, 2], False),
    Damage("video", lambda root: count(root, total_episodes=1, total_frames=3), [0, 1, 2], False),
    Damage("joined", lambda root: count(root, total_episodes=1, total_frames=3), [0, 1, 2], False),
    Damage("image", lambda root: without_footer(root / "data/chunk-000/file-002.parquet"), [0, 1], False),
    Damage("image", lambda root: (root / "meta/episodes/chunk-000/file-002.parquet").unlink(), [0, 1], False),
    Damage("image", lambda root: without_footer(root / "meta/tasks.parquet"), [0, 1, 2], False),
    Damage("image", lambda root: (root / "meta/stats.json").write_text("{"), [0, 1, 2], False),
    Damage("video", lambda root: (root / "data/chunk-000/file-000.parquet").unlink(), [1, 2], True),
    Damage("image", lambda root: without_footer(root / "data/chunk-000/file-001.parquet"), [0, 2], True),
    Damage(
        "joined",
        lambda root: change(
            root / "meta/episodes/chunk-000/file-000.parquet", lambda table: table.slice(0, 2)
        ),
        [0, 1],
        True,
    ),
    Damage(
        "joined",
        lambda root: change(root / "data/chunk-000/file-000.parquet", lambda table: table.slice(0, 7)),
        [0, 1],
        True,
    ),
    Damage("image", lambda root: shutil.rmtree(root / "data"), [], False),
]

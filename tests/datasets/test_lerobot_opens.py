"""What we write, LeRobot reads: the same frames, tasks, statistics. Needs interpreters that have LeRobot 0.6.1 and 0.3.3."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from smolact.datasets import edit
from smolact.datasets.reader import LeRobotDataset
from smolact.datasets.repair import repair
from smolact.datasets.rewrite import build
from smolact.datasets.sources import Source
from smolact.datasets.writer import DatasetWriter
from tests.datasets.annotated import LANGUAGE, annotate, rows_of
from tests.datasets.make import TASKS, record, write
from tests.datasets.test_extra_files import own

PARITY = Path(__file__).parent.parent / "parity/data"
OFFSETS = [-0.1, 0.0, 0.1, 0.2]


V30, V21 = "SMOLACT_LEROBOT_PYTHON", "SMOLACT_LEROBOT033_PYTHON"


def needs(variable: str, version: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(
        variable not in os.environ, reason=f"set {variable} to a Python that has LeRobot {version}"
    )


with_061, with_033 = needs(V30, "0.6.1"), needs(V21, "0.3.3")
pytestmark = pytest.mark.lerobot


def read_by_lerobot(python: str, roots: Sequence[Path]) -> list[dict[str, Any]]:
    script = Path(__file__).with_name("lerobot_reads.py")
    ran = subprocess.run(
        [os.environ[python], str(script), json.dumps(OFFSETS), *map(str, roots)],
        capture_output=True,
        text=True,
        env={"HF_HUB_OFFLINE": "1", "HF_HOME": str(roots[0].parent / "hf"), "PATH": os.environ["PATH"]},
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    found = [line.partition(" ")[2] for line in ran.stdout.splitlines() if line.startswith("found ")]
    return [dict(json.loads(line)) for line in found]


@with_061
@pytest.mark.parametrize("dtype", ["video", "image"])
@pytest.mark.parametrize("episodes_per_file", [1, 2])
def test_lerobot_finds_what_we_find(tmp_path: Path, dtype: str, episodes_per_file: int) -> None:
    cameras = ("observation.image", "observation.images.wrist")
    root = write(tmp_path / "ours", dtype=dtype, cameras=cameras, episodes_per_file=episodes_per_file)
    assert_same_to_both(root)


@with_061
def test_what_lerobot_began_and_we_went_on_with_opens_there_again(tmp_path: Path) -> None:
    root = tmp_path / "theirs"
    shutil.copytree(PARITY / "dataset_v30", root)
    for episode in range(2):
        with DatasetWriter.resume(root) as writer:
            for number in range(3 + episode):
                brightness = np.full((64, 96, 3), 40 * number + episode, np.uint8)
                vectors = np.full((2, 6), number + episode / 10, np.float32)
                frame = dict.fromkeys(LeRobotDataset(root).meta.camera_keys, brightness)
                frame |= {"observation.state": vectors[0], "action": vectors[1]}
                writer.add_frame(frame, task="Something new.")
            writer.save_episode()
    assert_same_to_both(root)


@with_061
@pytest.mark.parametrize("dtype", ["video", "image"])
def test_what_was_edited_opens_there(tmp_path: Path, dtype: str) -> None:
    cameras = ("observation.image", "observation.images.wrist")
    source = Source(write(tmp_path / "set", (5, 4, 6, 3), dtype=dtype, cameras=cameras, episodes_per_file=2))
    whole = edit.all_episodes(source)
    other = {camera: {"video": "image", "image": "video"}[dtype] for camera in cameras}
    parts = edit.split(source, {"half": 0.5, "listed": [3]})
    plans = {
        "compact": whole,
        "delete": edit.delete_episodes(source, [1]),
        "filter": edit.select_episodes(source, np.flatnonzero(source.meta.episodes.length > 4).tolist()),
        "merge": edit.merge([source, source]),
        "rename": edit.rename_task(source, TASKS[0], "Do it."),
        "join": edit.rename_task(source, TASKS[0], TASKS[1]),
        "remove": edit.remove_features(source, [cameras[0], "next.done"]),
        "stats": dataclasses.replace(whole, recompute=True),
        "other": dataclasses.replace(whole, cameras=other),
        **parts,
    }
    assert_same_to_both(*(build(plan, tmp_path / name) for name, plan in plans.items()))


@with_061
def test_what_was_put_in_order_opens_there(tmp_path: Path) -> None:
    """Joints of another order, rows of another order, a later version, and numbers as text."""
    root = write(tmp_path / "set", (5, 4, 6), episodes_per_file=3)
    other = Path(shutil.copytree(root, tmp_path / "other"))
    path = other / "meta/info.json"
    info = json.loads(path.read_text())
    info["features"]["observation.state"]["names"] = ["d", "b", "a", "c"]
    info |= {"codebase_version": "v3.1", "fps": "10", "chunks_size": 1000.0, "robot_type": "arm"}
    path.write_text(json.dumps(info))
    data = other / "data/chunk-000/file-000.parquet"
    pq.write_table(pq.read_table(data).take(list(range(14, -1, -1))), data)
    sources = [Source(root), Source(other)]
    made = build(edit.merge(sources, reorder_names=True), tmp_path / "merged")
    assert_same_to_both(made, build(edit.all_episodes(sources[1]), tmp_path / "compact"))


@with_061
def test_annotations_open_there_after_every_edit(tmp_path: Path) -> None:
    camera = "observation.images.top"
    root = annotate(write(tmp_path / "set", (3, 4, 5), "image"), camera, silent=[2])
    source = Source(root)
    old = build(dataclasses.replace(edit.all_episodes(source), version="v2.1"), tmp_path / "v21")
    plans = {
        "compact": edit.all_episodes(source),
        "delete": edit.delete_episodes(source, [0]),
        "silent": edit.select_episodes(
            source, [2]
        ),  # nothing is said in it: its columns hold nothing but empty lists
        "merge": edit.merge([source, source]),
        "rename": edit.rename_task(source, TASKS[0], "Do it."),
        "back": edit.all_episodes(Source(old)),
    }
    made = [build(plan, tmp_path / name) for name, plan in plans.items()]
    made.append(own(shutil.copytree(root, tmp_path / "resumed")))
    with DatasetWriter.resume(made[-1]) as writer:
        record(writer, 3, 2)
    made.append(build(edit.merge([Source(made[-1]), source]), tmp_path / "with files of others"))
    for path, theirs in zip(made, read_by_lerobot(V30, made), strict=True):
        ours = [row for rows in rows_of(path, *LANGUAGE) for row in rows]
        assert [{name: sample[name] for name in LANGUAGE} for sample in theirs["samples"]] == ours
        _assert_same(path, theirs)


@with_061
def test_what_was_of_version_v21_opens_there(tmp_path: Path) -> None:
    source = Source(PARITY / "dataset_v21")
    assert_same_to_both(build(edit.all_episodes(source), tmp_path / "new"))


@with_061
@pytest.mark.parametrize("lost", [1, 2])
def test_what_was_repaired_opens_there(tmp_path: Path, lost: int) -> None:
    root = write(tmp_path / "set", (5, 4, 6))
    path = root / f"data/chunk-000/file-{lost:03d}.parquet"
    path.write_bytes(path.read_bytes()[:-10])
    assert repair(root).episodes == 2
    assert_same_to_both(root)


@with_033
@pytest.mark.parametrize("dtype", ["video", "image"])
def test_what_was_made_v21_opens_in_the_lerobot_of_its_time(tmp_path: Path, dtype: str) -> None:
    cameras = ("observation.image", "observation.images.wrist")
    old = [
        Source(write(tmp_path / "set", (5, 4, 6), dtype=dtype, cameras=cameras, video_codec="h264")),
        Source(PARITY / "dataset_v30"),
    ]
    new = [
        build(dataclasses.replace(edit.all_episodes(source), version="v2.1"), tmp_path / f"v21_{number}")
        for number, source in enumerate(old)
    ]
    both = build(
        dataclasses.replace(edit.delete_episodes(old[0], [1]), version="v2.1"), tmp_path / "v21_less"
    )
    assert_same_to_both(*new, both, python=V21)
    for root, source in zip(new, old, strict=True):
        before, after = LeRobotDataset(source.meta.root), LeRobotDataset(root)
        for sample, expected in zip(after, before, strict=True):
            assert all(torch.equal(sample[key], expected[key]) for key in before.meta.camera_keys)


def assert_same_to_both(*roots: Path, python: str = V30) -> None:
    for root, theirs in zip(roots, read_by_lerobot(python, roots), strict=True):
        _assert_same(root, theirs)


def _assert_same(root: Path, theirs: dict[str, Any]) -> None:
    ours = LeRobotDataset(root, delta_timestamps={"action": OFFSETS})
    cameras = ours.meta.camera_keys
    assert (theirs["length"], theirs["episodes"]) == (len(ours), ours.num_episodes)
    for sample, expected in zip(ours, theirs["samples"], strict=True):
        for key, value in expected.items():
            found = sample[key].double().mean((1, 2)).tolist() if key in cameras else sample[key]
            found = found.tolist() if hasattr(found, "tolist") else found
            assert found == (pytest.approx(value, abs=1e-6) if key in cameras else value), key
    for key, values in theirs["stats"].items():
        for name, value in values.items():
            np.testing.assert_allclose(ours.meta.stats[key][name], value)

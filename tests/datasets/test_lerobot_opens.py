"""What we write, LeRobot reads: the same frames, tasks, statistics. Needs an interpreter that has LeRobot 0.6.1."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from smolact.datasets import edit
from smolact.datasets.reader import LeRobotDataset
from smolact.datasets.repair import repair
from smolact.datasets.rewrite import build
from smolact.datasets.sources import Source
from smolact.datasets.writer import DatasetWriter
from tests.datasets.make import TASKS, write

OFFSETS = [-0.1, 0.0, 0.1, 0.2]


def read_by_lerobot(root: Path) -> dict[str, Any]:
    script = Path(__file__).with_name("lerobot_reads.py")
    found = subprocess.run(
        [os.environ["SMOLACT_LEROBOT_PYTHON"], str(script), str(root), json.dumps(OFFSETS)],
        capture_output=True,
        text=True,
        env={"HF_HUB_OFFLINE": "1", "HF_HOME": str(root.parent / "hf"), "PATH": os.environ["PATH"]},
        check=False,
    )
    assert found.returncode == 0, found.stderr[-3000:]
    return dict(json.loads(found.stdout.splitlines()[-1]))


pytestmark = [
    pytest.mark.lerobot,
    pytest.mark.skipif(
        "SMOLACT_LEROBOT_PYTHON" not in os.environ,
        reason="set SMOLACT_LEROBOT_PYTHON to a Python that has LeRobot 0.6.1",
    ),
]


@pytest.mark.parametrize("dtype", ["video", "image"])
@pytest.mark.parametrize("episodes_per_file", [1, 2])
def test_lerobot_finds_what_we_find(tmp_path: Path, dtype: str, episodes_per_file: int) -> None:
    cameras = ("observation.image", "observation.images.wrist")
    root = write(tmp_path / "ours", dtype=dtype, cameras=cameras, episodes_per_file=episodes_per_file)
    same_to_both(root)


def test_what_lerobot_began_and_we_went_on_with_opens_there_again(tmp_path: Path) -> None:
    root = tmp_path / "theirs"
    shutil.copytree(Path(__file__).parent.parent / "parity/data/dataset_v30", root)
    for episode in range(2):
        with DatasetWriter.resume(root) as writer:
            for number in range(3 + episode):
                brightness = np.full((64, 96, 3), 40 * number + episode, np.uint8)
                vectors = np.full((2, 6), number + episode / 10, np.float32)
                frame = dict.fromkeys(LeRobotDataset(root).meta.camera_keys, brightness)
                frame |= {"observation.state": vectors[0], "action": vectors[1]}
                writer.add_frame(frame, task="Something new.")
            writer.save_episode()
    same_to_both(root)


@pytest.mark.parametrize("dtype", ["video", "image"])
def test_what_was_edited_opens_there(tmp_path: Path, dtype: str) -> None:
    source = Source(write(tmp_path / "set", (5, 4, 6), dtype=dtype, episodes_per_file=2))
    same_to_both(build(edit.whole(source), tmp_path / "compact"))
    same_to_both(build(edit.delete(source, [1]), tmp_path / "delete"))
    same_to_both(build(edit.merge([source, source]), tmp_path / "merge"))
    same_to_both(build(edit.rename_task(source, TASKS[0], "Do it."), tmp_path / "rename"))
    other = {camera: {"video": "image", "image": "video"}[dtype] for camera in source.meta.camera_keys}
    same_to_both(build(dataclasses.replace(edit.whole(source), cameras=other), tmp_path / "other"))


def test_what_was_of_version_v21_opens_there(tmp_path: Path) -> None:
    source = Source(Path(__file__).parent.parent / "parity/data/dataset_v21")
    same_to_both(build(edit.whole(source), tmp_path / "new"))


@pytest.mark.parametrize("lost", [1, 2])
def test_what_was_repaired_opens_there(tmp_path: Path, lost: int) -> None:
    root = write(tmp_path / "set", (5, 4, 6))
    path = root / f"data/chunk-000/file-{lost:03d}.parquet"
    path.write_bytes(path.read_bytes()[:-10])
    assert repair(root).episodes == 2
    same_to_both(root)


def same_to_both(root: Path) -> None:
    theirs = read_by_lerobot(root)
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

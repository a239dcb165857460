"""What `smolact dataset check` calls an error stops a training before its first step, unless it is told to go on."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from smolact.cli.main import main
from smolact.datasets.inspection import check_dataset
from tests.datasets.make import write
from tests.training.runs import QUICK, SMALL

DATA = "data/chunk-000/file-001.parquet"


def change(root: Path, name: str, value: Any, row: int = 2) -> None:
    """Put a value into a column of episode 1."""
    table = pq.read_table(root / DATA)
    column = table.column(name)
    values = column.to_pylist()
    values[row] = [value, *values[row][1:]] if isinstance(values[row], list) else value
    made = pa.array(values, column.type)
    pq.write_table(
        table.set_column(table.schema.get_field_index(name), table.schema.field(name), made), root / DATA
    )


def change_statistic(root: Path, feature: str, name: str, number: float) -> None:
    path = root / "meta/stats.json"
    stats = json.loads(path.read_text())
    stats[feature][name][0] = number
    path.write_text(json.dumps(stats))


FAULTS: dict[str, Callable[[Path], None]] = {
    "an action that is NaN": lambda root: change(root, "action", float("nan")),
    "an action of 1e30": lambda root: change(root, "action", 1e30),
    "a negative index": lambda root: change(root, "index", -3),
    "a standard deviation of 0": lambda root: change_statistic(root, "action", "std", 0.0),
    "a negative standard deviation": lambda root: change_statistic(root, "observation.state", "std", -1.0),
}


def command(root: Path, output: Path, *more: str) -> list[str]:
    return ["train", f"--dataset.root={root}", *SMALL, *QUICK, "--steps=1", f"--output_dir={output}", *more]


@pytest.mark.parametrize("damage", FAULTS.values(), ids=FAULTS.keys())
def test_a_fault_stops_a_training_before_its_first_step(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[Path], None],
) -> None:
    root = write(tmp_path / "d", dtype="image")
    assert main(command(root, tmp_path / "whole")) == 0
    damage(root)
    named = [fault for fault in check_dataset(root) if fault.severity == "error"]
    assert named
    capsys.readouterr()
    assert main(command(root, tmp_path / "run")) == 1
    said = capsys.readouterr().err
    assert named[0].message in said
    assert not (tmp_path / "run").exists()
    assert main(command(root, tmp_path / "run", "--check=true")) == 1  # also without a step
    hint = re.search(r"smolact (dataset check --dataset\.root=\S+)", said)
    assert hint is not None and main(hint[1].split()) == 1
    flag = re.search(r"--dataset\.allow_faults=true", said)
    assert flag is not None and main(command(root, tmp_path / "run", flag[0])) == 0
    assert named[0].message in caplog.text and "Training goes on" in caplog.text
    resume = ["train", "--resume=true", f"--output_dir={tmp_path / 'run'}", "--steps=2"]
    assert main(resume) == 0  # the run keeps it


def test_what_a_run_leaves_out_does_not_stop_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write(tmp_path / "d", dtype="image")
    change(root, "index", -3)
    assert main(command(root, tmp_path / "run")) == 1
    assert "--dataset.exclude_episodes" in capsys.readouterr().err
    assert main(command(root, tmp_path / "run", "--dataset.exclude_episodes=[1]")) == 0


def test_a_feature_that_the_policy_does_not_use_does_not_stop_it(tmp_path: Path) -> None:
    root = write(tmp_path / "d", dtype="image")
    change_statistic(root, "next.done", "std", -1.0)
    change_statistic(root, "observation.images.top", "std", [[-1.0]])  # type: ignore[arg-type]
    assert len([fault for fault in check_dataset(root) if fault.severity == "error"]) == 2
    assert main(command(root, tmp_path / "run")) == 0


def test_a_joint_that_never_moves_is_told_and_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    from smolact.datasets.writer import DatasetWriter
    from tests.datasets.make import FPS, TASKS, features, frame

    cameras = ("observation.images.top",)
    with DatasetWriter.create(tmp_path / "d", fps=FPS, features=features("image", cameras)) as writer:
        for number in range(6):
            one = frame(0, number, cameras, 6)
            one["action"][1] = 0.25
            writer.add_frame(one, task=TASKS[0])
        writer.save_episode()
    assert np.all(json.loads((tmp_path / "d/meta/stats.json").read_text())["action"]["std"][1] == 0)
    assert main(command(tmp_path / "d", tmp_path / "run")) == 0
    assert caplog.text.count("of 'action' the numbers 1 never change") == 1

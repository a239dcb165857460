"""Held-out episodes: which, and that their loss is a fixed measure."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from smolact.datasets.metadata import LeRobotDatasetMetadata
from smolact.errors import ConfigError
from smolact.training.sources import split_episodes
from tests.training.runs import DATASET, run, settings


def test_the_last_episodes_of_each_task_are_held_out_but_never_all() -> None:
    meta = LeRobotDatasetMetadata(DATASET)
    tasks = [meta.episodes[number].tasks[0] for number in range(4)]
    assert len(set(tasks)) == 3  # two episodes share one
    shared = [number for number in range(4) if tasks.count(tasks[number]) == 2]
    kept, held_out = split_episodes(range(4), meta, 0.5)
    assert held_out == shared[1:]
    assert sorted(kept + held_out) == [0, 1, 2, 3]
    with pytest.raises(ConfigError, match="single episode"):
        split_episodes([number for number in range(4) if number != shared[0]], meta, 0.5)


def test_the_held_out_loss_is_measured_without_touching_the_run(tmp_path: Path) -> None:
    flags = ("--dataset.eval_split=0.5", "--max_eval_samples=5")
    often, _ = run(tmp_path / "often", "--steps=4", "--eval_steps=1", *flags)
    seldom, _ = run(tmp_path / "seldom", "--steps=4", "--eval_steps=4", *flags)
    rows = [
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (tmp_path / "often", tmp_path / "seldom")
    ]
    assert [row["loss"] for row in rows[0]] == [row["loss"] for row in rows[1]]
    assert rows[0][-1]["validation_loss"] == rows[1][-1]["validation_loss"]
    assert len({row["validation_loss"] for row in rows[0]}) == 4  # it follows the weights
    assert "validation_loss" not in rows[1][0]
    assert often.is_complete and seldom.is_complete


def test_split_and_steps_need_each_other() -> None:
    for flags in (["--eval_steps=5"], ["--dataset.eval_split=0.1"]):
        with pytest.raises(ConfigError, match="need each other"):
            settings(*flags)
    with pytest.raises(ConfigError, match="it is a share"):
        settings("--dataset.eval_split=1.0", "--eval_steps=5")

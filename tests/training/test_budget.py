"""Training by the clock: the minutes are kept, the learning rate follows them, and a run goes on where it was."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from smolact.cli.main import main
from smolact.errors import ConfigError
from smolact.training import budget as budget_module
from smolact.training.budget import LEAST_STEPS, Budget
from smolact.training.checkpoint import read_progress
from smolact.training.tracking import Measured
from tests.training.runs import DATASET, QUICK, SMALL, run


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(budget_module.time, "monotonic", lambda: now[0])
    return now


def spend(budget: Budget, clock: list[float], seconds: float) -> None:
    clock[0] += seconds
    budget.spend(budget.now())


def test_steps_are_counted(clock: list[float]) -> None:
    budget = Budget(4)
    budget.begin(0.0)
    assert budget.share == 0 and budget.seconds_left is None
    for _ in range(3):
        spend(budget, clock, 2.0)
    assert budget.share == 0.75 and not budget.is_over and budget.seconds_left == 2.0
    spend(budget, clock, 2.0)
    assert budget.is_over


def test_a_run_by_the_clock_ends_before_the_step_that_would_be_late(clock: list[float]) -> None:
    budget = Budget(1, minutes=1.0)
    clock[0] += 10.0  # datasets are opened, weights are read
    budget.begin(budget.now())
    assert budget.share == 0
    while not budget.is_over:
        spend(budget, clock, 0.7)
    assert 59.3 - 0.71 <= budget.seconds <= 60 and budget.share == pytest.approx(1, abs=0.02)


def test_an_evaluation_between_steps_does_not_end_a_run_early(clock: list[float]) -> None:
    budget = Budget(1, minutes=10.0)
    budget.begin(0.0)
    for _ in range(60):
        spend(budget, clock, 1.0)
    clock[0] += 400.0  # an evaluation
    for _ in range(3):
        spend(budget, clock, 1.0)
    assert not budget.is_over


def test_a_slow_machine_takes_its_least_steps_and_its_rate_falls_with_them(clock: list[float]) -> None:
    budget = Budget(1, minutes=1.0)
    budget.begin(0.0)
    for step in range(LEAST_STEPS):
        assert not budget.is_over and budget.share <= (step + 1) / LEAST_STEPS
        spend(budget, clock, 60.0)
    assert budget.is_over and budget.share == 1


def test_time_between_two_lives_of_a_run_is_not_the_runs(clock: list[float]) -> None:
    budget = Budget(1, minutes=10.0)
    budget.resume(50, seconds=300.0, lead=20.0)
    clock[0] += 5.0
    budget.begin(budget.now())
    assert budget.step == 50 and budget.lead == 20.0
    assert budget.share == pytest.approx(285 / 580)


def test_a_training_keeps_its_minutes_and_ends_at_the_lowest_rate(tmp_path: Path) -> None:
    began = time.monotonic()
    ended, told = run(tmp_path / "run", "--train_minutes=0.2", "--batch_size=2")
    took = time.monotonic() - began
    assert ended.is_complete and ended.step > LEAST_STEPS
    assert took > 0.8 * 12
    rates = [event.metrics["lr"] for event in told.of(Measured)]
    assert rates[-1] == pytest.approx(2.5e-6, rel=0.3) and max(rates) > 5e-5
    *before, last = (event.metrics["seconds"] for event in told.of(Measured))
    assert max(before) < 12 < last + 2  # no step begins late; how long the last one takes is the machine's
    assert ended.checkpoint is not None
    saved = json.loads((ended.checkpoint / "pretrained_model/train_config.json").read_text())
    assert saved["steps"] == saved["scheduler"]["num_decay_steps"] == ended.step
    assert read_progress(ended.checkpoint).seconds > 8

    folder = f"--output_dir={tmp_path / 'run'}"
    assert main(["train", "--resume=true", folder]) == 0  # there is nothing left to do
    assert read_progress(ended.checkpoint.parent / "last").step == ended.step
    assert main(["train", "--resume=true", folder, "--train_minutes=0.25"]) == 0
    later = read_progress(ended.checkpoint.parent / "last")
    assert later.step > ended.step and later.seconds > 13
    assert main(["train", "--resume=true", folder, f"--steps={later.step + 2}"]) == 0  # and on by steps
    assert read_progress(ended.checkpoint.parent / "last").step == later.step + 2


def test_steps_and_minutes_exclude_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [f"--dataset.root={DATASET}", *SMALL, *QUICK, f"--output_dir={tmp_path / 'run'}"]
    assert main(["train", *flags, "--steps=5", "--train_minutes=1"]) == 2
    assert "--steps=5 and --train_minutes=1 both say" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="more than 0"):
        run(tmp_path / "run", "--train_minutes=0")

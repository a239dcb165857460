"""Processes that share a step: the same run whoever computes what, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from smolact.errors import ConfigError
from smolact.training import adaptive_workers
from smolact.training.adaptive_workers import AdaptiveWorkers
from smolact.training.gradients import default_part_count, split_evenly
from smolact.training.tracking import Measured
from smolact.training.worker_pool import StepGradients, WorkerPool
from tests.training.runs import DATASET, QUICK, SMALL, run

STEPS = ("--batch_size=16", "--steps=3")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints/last/pretrained_model/model.safetensors")


def assert_same(one: Path, other: Path) -> None:
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shared") / "run"
    run(folder, *STEPS, "--cpu_processes=2")
    return folder


@pytest.mark.parametrize(("count", "processes"), [(1, 4), (7, 2), (8, 2), (32, 2), (32, 16), (50, 3)])
def test_pieces_cover_a_step_and_are_alike(count: int, processes: int) -> None:
    pieces = split_evenly(count, default_part_count(count, processes))
    assert [place for piece in pieces for place in piece] == list(range(count))
    assert max(map(len, pieces)) - min(map(len, pieces)) <= 1
    assert len(pieces) == 1 or min(map(len, pieces)) >= 4


def test_a_run_is_the_same_whoever_computes_it(shared: Path, tmp_path: Path) -> None:
    run(tmp_path / "three", *STEPS, "--cpu_processes=3")
    assert_same(shared, tmp_path / "three")


def test_its_slow_twin_is_one_process_with_the_whole_batch(shared: Path, tmp_path: Path) -> None:
    _, whole = run(tmp_path / "whole", *STEPS, "--cpu_processes=1")
    _, pieces = run(tmp_path / "pieces", *STEPS, "--cpu_processes=2")
    for step, loss in whole.losses.items():
        assert pieces.losses[step] == pytest.approx(loss, rel=1e-4)
    norms = [[event.metrics["grad_norm"] for event in events.of(Measured)] for events in (whole, pieces)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)


def test_accumulated_batches_are_shared_too(shared: Path, tmp_path: Path) -> None:
    run(
        tmp_path / "run",
        *("--batch_size=4", "--gradient_accumulation_steps=4", "--steps=3"),
        "--cpu_processes=2",
    )
    assert_same(shared, tmp_path / "run")


def test_a_shared_run_resumes_bit_for_bit(shared: Path, tmp_path: Path) -> None:
    from smolact.cli.train import read_settings
    from smolact.training.train import train

    folder = tmp_path / "run"
    schedule = "--policy.scheduler_decay_steps=3"
    run(tmp_path / "whole", *STEPS, "--cpu_processes=2", schedule)
    run(folder, *STEPS[:1], "--steps=2", "--cpu_processes=2", schedule)
    config = read_settings(["--resume=true", f"--output_dir={folder}", "--steps=3"])
    train(config)
    assert_same(tmp_path / "whole", folder)


def test_a_process_that_is_killed_costs_nothing_but_time(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gradients = WorkerPool.gradients

    def kill_one(self: WorkerPool, first: int) -> StepGradients:
        if self._step == 1:
            while self.ready < 2:
                time.sleep(0.02)
            os.kill(self._workers[0].process.pid, signal.SIGKILL)
            self._workers[0].process.join()  # until then its pipe takes a message that nobody reads
        return gradients(self, first)

    monkeypatch.setattr(WorkerPool, "gradients", kill_one)
    run(tmp_path / "run", *STEPS, "--cpu_processes=2")
    assert_same(shared, tmp_path / "run")
    assert "has ended; the others go on without it" in caplog.text


def test_what_a_process_can_not_read_is_told_as_if_it_were_read_here(tmp_path: Path) -> None:
    import shutil

    from smolact.errors import DatasetError
    from tests.training.runs import Recorder, plain_settings

    root = tmp_path / "dataset"
    shutil.copytree(DATASET, root)
    for video in root.glob("videos/**/*.mp4"):
        video.write_bytes(video.read_bytes()[: len(video.read_bytes()) // 3])
    config = plain_settings(
        f"--dataset.root={root}",
        *SMALL,
        *QUICK,
        *STEPS,
        "--cpu_processes=2",
        f"--output_dir={tmp_path / 'run'}",
    )
    from smolact.training.train import train

    with pytest.raises(DatasetError, match="can't be read"):
        train(config, listeners=[Recorder()])


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("--batch_size=4", "--cpu_processes=2"), "is work for 1 at most"),
        (("--batch_size=16", "--cpu_processes=8"), "is work for 4 at most"),
    ],
)
def test_processes_that_would_have_nothing_to_do_are_refused(
    flags: tuple[str, ...], reason: str, tmp_path: Path
) -> None:
    for more in ((), ("--check=true",)):
        with pytest.raises(ConfigError, match=f"cpu_processes=.* {reason}"):
            run(tmp_path / "run", *flags, "--steps=1", *more)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux's /proc")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_no_process_is_left_behind(how: signal.Signals, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "smolact", "train", f"--dataset.root={DATASET}", *SMALL, *QUICK]
    command += ["--batch_size=16", "--steps=100000", "--cpu_processes=2", f"--output_dir={tmp_path / 'run'}"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    metrics = tmp_path / "run/metrics.jsonl"
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")

    def workers() -> list[str]:
        return [child for child in children.read_text().split() if "spawn_main" in _command(child)]

    _until(lambda: metrics.is_file() and len(metrics.read_text().splitlines()) > 3 and bool(workers()))
    there = workers()
    process.send_signal(how)
    process.wait(60)
    _until(lambda: not any(_command(child) for child in there))
    assert there and not [child for child in there if _command(child)]


def _command(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def _until(holds: Any) -> None:
    end = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


class Machine:
    """Processes that are as fast as somebody says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.active, self.started, self.most, self.number = 0.0, 1, 1, 4, 4
        self.steps_per_second = {1: 5.0, 2: 10.0, 4: 10.0}
        self.busy = 1.0
        monkeypatch.setattr(adaptive_workers.time, "perf_counter", lambda: self.now)

    @property
    def ready(self) -> int:
        return self.started

    def start(self, number: int) -> None:
        self.started = max(self.started, number)

    def gradients(self, first: int) -> StepGradients:
        self.now += 1 / self.steps_per_second[min(self.active, self.started)]
        return StepGradients(torch.tensor(0.0), torch.tensor(1.0), [], 0.0, self.busy)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def train_for(shared: AdaptiveWorkers, machine: Machine, seconds: float) -> None:
    end = machine.now + seconds
    while machine.now < end:
        shared.gradients(0)


def test_as_many_processes_as_are_fastest_train(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    shared = AdaptiveWorkers(machine, 32, 2)  # type: ignore[arg-type]
    train_for(shared, machine, 15)
    assert machine.active == 2 and machine.started == 2
    assert "Training in 2 processes of one thread: 320 samples/s (1: 160)." in caplog.text
    machine.steps_per_second = {1: 5.0, 2: 4.0, 4: 4.0}
    train_for(shared, machine, 40)
    assert machine.active == 1
    assert "Training in 1 process of one thread: 160 samples/s (2: 128)." in caplog.text


def test_a_machine_that_has_become_busy_gets_more_processes(machine: Machine) -> None:
    shared = AdaptiveWorkers(machine, 32, 2)  # type: ignore[arg-type]
    train_for(shared, machine, 15)
    machine.busy, machine.steps_per_second = 0.5, {1: 2.0, 2: 5.0, 4: 7.0}
    train_for(shared, machine, 60)
    assert machine.active == 4


def test_a_moment_in_which_the_machine_was_busy_is_forgotten(machine: Machine) -> None:
    shared = AdaptiveWorkers(machine, 32, 2)  # type: ignore[arg-type]
    machine.steps_per_second = {1: 5.0, 2: 3.0, 4: 3.0}
    train_for(shared, machine, 15)
    assert machine.active == 1
    machine.steps_per_second = {1: 5.0, 2: 10.0, 4: 10.0}
    train_for(shared, machine, 90)
    assert machine.active == 2


def test_a_run_by_the_clock_has_a_piece_for_each_process(machine: Machine) -> None:
    exact = AdaptiveWorkers(machine, 32, 2)  # type: ignore[arg-type]
    train_for(exact, machine, 15)
    assert machine.active == 2 and machine.number == 4
    machine.active = machine.number = 1
    free = AdaptiveWorkers(machine, 32, 2, is_exact=False)  # type: ignore[arg-type]
    train_for(free, machine, 15)
    assert machine.active == machine.number == 2


def test_a_run_that_is_nearly_over_starts_nobody(machine: Machine) -> None:
    shared = AdaptiveWorkers(machine, 32, 2, seconds_left=lambda: 10.0)  # type: ignore[arg-type]
    train_for(shared, machine, 30)
    assert machine.started == 1

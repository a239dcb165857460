"""One process, two, or accumulated batches: the same global batch gives the same run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.training.runs import DATASET, SMALL, run

FROZEN = (
    "--policy.train_expert_only=true",
    "--policy.allow_frozen_random=true",
    "--steps=4",
    "--log_freq=1",
)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process, with batches of four."""
    folder = tmp_path_factory.mktemp("runs") / "alone"
    run(folder, *FROZEN, "--batch_size=4", "--save_freq=2")
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints" / "last" / "pretrained_model" / "model.safetensors")


def check_same(folder: Path, reference: Path) -> None:
    found, expected = weights(folder), weights(reference)
    difference = torch.stack([(found[key] - expected[key]).norm() for key in expected]).norm()
    assert difference / torch.stack([tensor.norm() for tensor in expected.values()]).norm() <= 1e-6
    for name in ("loss", "grad_norm"):
        rows = [
            [json.loads(line)[name] for line in (path / "metrics.jsonl").read_text().splitlines()]
            for path in (folder, reference)
        ]
        assert len(rows[0]) == 4
        assert rows[0] == pytest.approx(rows[1], rel=1e-6)
    state = [
        json.loads((path / "checkpoints/last/training_state/training_step.json").read_text())
        for path in (folder, reference)
    ]
    assert state[0]["samples"] == state[1]["samples"] == 16


def test_accumulated_batches_are_one_large_batch(alone: Path, tmp_path: Path) -> None:
    run(tmp_path / "run", *FROZEN, "--batch_size=1", "--gradient_accumulation_steps=4")
    check_same(tmp_path / "run", alone)


def run_two(folder: Path, *argv: str, root: Path = DATASET) -> str:
    """Train with two processes, and give what they said."""
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"),
        *("-m", "smolact", "train", *argv),
        *(f"--dataset.root={root}", f"--output_dir={folder}", "--num_workers=0", "--save_freq=2"),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=240
    )
    if "--parallelism.dp_shard on a CPU needs a newer PyTorch" in done.stderr:
        pytest.skip("this PyTorch adds gradients up where FSDP2 averages them")
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_two_processes_are_one_with_the_same_global_batch(alone: Path, tmp_path: Path) -> None:
    said = run_two(tmp_path / "run", *SMALL, *FROZEN, "--batch_size=2")
    check_same(tmp_path / "run", alone)
    assert said.count("4 samples (2 a process × 2 processes)") == 1  # said once, not by each


def test_weights_split_over_two_processes_are_one_with_the_same_global_batch(
    alone: Path, tmp_path: Path
) -> None:
    split = (*FROZEN, "--parallelism.dp_shard=-1", "--batch_size=1", "--gradient_accumulation_steps=2")
    said = run_two(tmp_path / "run", *SMALL, *split)
    check_same(tmp_path / "run", alone)
    assert "split over 2 processes" in said


def test_a_run_of_one_process_goes_on_with_weights_split_over_two(alone: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(alone, folder, symlinks=True)
    shutil.rmtree(folder / "checkpoints" / "000004")
    (folder / "checkpoints" / "last").unlink()
    (folder / "checkpoints" / "last").symlink_to("000002")
    run_two(folder, "--resume=true", "--batch_size=2", "--parallelism.dp_shard=2")
    check_same(folder, alone)

"""The recipes in `configs/` work as they stand."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from smolact.training.sections import DatasetSection, EMASection
from tests.training.runs import DATASET, SMALL, plain_settings

CONFIGS = Path(__file__).parents[1] / "configs"


def test_every_setting_of_the_fine_tuning_recipe_is_known(tmp_path: Path) -> None:
    base = Path(__file__).parent / "parity" / "data" / "lerobot_checkpoint"
    config = plain_settings(
        f"--config_path={CONFIGS / 'finetune_smolvla.yaml'}",
        f"--policy.path={base}",
        f"--dataset.root={DATASET}",
    )
    assert (config.batch_size, config.steps, config.keep_last) == (64, 20_000, 3)
    assert config.ema == EMASection(enable=True)
    assert isinstance(config.dataset, DatasetSection) and config.dataset.image_transforms.enable


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_the_slurm_recipe_starts_a_run_and_goes_on_with_it(tmp_path: Path) -> None:
    """Slurm's own commands are stood in for; torchrun and the training are real."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, body in (
        ("scontrol", "echo localhost; echo othernode"),
        ("srun", 'shift; exec "$@"'),
        ("torchrun", f'exec {sys.executable} -m torch.distributed.run "$@"'),
    ):
        (commands / name).write_text(f"#!/bin/bash\n{body}\n")
        (commands / name).chmod(0o755)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "OUTPUT": str(tmp_path / "run"),
        "PROCESSES": "2",
        "PORT": str(port),
        "SLURM_JOB_NAME": "test",
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "localhost",
        "SLURM_NNODES": "1",
    }
    flags = [
        *SMALL,
        f"--dataset.root={DATASET}",
        "--batch_size=1",
        "--num_workers=0",
        "--steps=2",
        "--report=false",
    ]

    def submit(*more: str) -> None:
        command = ["bash", str(CONFIGS / "slurm" / "train.sbatch"), *flags, *more]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr

    submit("--save_freq=1")
    checkpoints = tmp_path / "run" / "checkpoints"
    shutil.rmtree(checkpoints / "000002")  # as if the time had been over
    (checkpoints / "last").unlink()
    (checkpoints / "last").symlink_to("000001")
    submit("--save_freq=1")
    state = json.loads((checkpoints / "last" / "training_state" / "training_step.json").read_text())
    assert state["step"] == 2 and state["num_processes"] == 2

"""Five hundred steps, stopped by Ctrl-C where it hurts, are the five hundred steps of a run that was left alone."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from smolact.cli.train import read_settings
from smolact.training.tracking import Stepped
from smolact.training.train import train
from tests.training.runs import QUICK, SMALL, Recorder, settings

STEPS = 500
FRAMES = 63  # of the dataset; two a step


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_stopped_run_is_the_run_that_it_would_have_been(tmp_path: Path, workers: int) -> None:
    flags = (
        *SMALL,
        *QUICK,
        f"--steps={STEPS}",
        f"--num_workers={workers}",
        "--dataloader_multiprocessing_context=forkserver",
        "--dataset.image_transforms.enable=true",
        "--ema.enable=true",
    )
    straight = Recorder()
    config = settings(*flags, f"--output_dir={tmp_path / 'straight'}")
    ended = train(config, listeners=[straight])
    assert ended.checkpoint is not None

    stops = [
        1,
        FRAMES // 4,
        FRAMES,
        STEPS - 1,
    ]  # the first step, inside an epoch, where two epochs end, the last
    folder = tmp_path / "stopped"
    config = settings(*flags, f"--output_dir={folder}")
    losses: dict[int, float] = {}
    for stop in [*stops, STEPS]:
        recorder = Recorder()

        def press(event: Any, stop: int = stop) -> None:
            if isinstance(event, Stepped) and event.step == stop < STEPS:
                os.kill(os.getpid(), signal.SIGINT)

        end = train(config, listeners=[recorder, press])
        losses |= recorder.losses
        config = read_settings(["--resume=true", f"--output_dir={folder}"])
    assert losses == straight.losses
    assert end.checkpoint is not None
    for name in (
        "pretrained_model/model.safetensors",
        "training_state/optimizer_state.safetensors",
        "training_state/ema_state.safetensors",
        "training_state/rng_state.safetensors",
    ):
        one, other = load_file(ended.checkpoint / name), load_file(end.checkpoint / name)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one), name

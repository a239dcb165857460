"""Kill a process that saves, prunes and moves `last` without pause, at random moments, and look at what it left."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from smolact.policies.configuration import SchedulerPreset
from smolact.training.checkpoint import (
    PRETRAINED_MODEL,
    Progress,
    load_training_state,
    read_progress,
    save_checkpoint,
)
from smolact.training.optim import make_scheduler
from smolact.training.run_folder import find_checkpoint, prune_checkpoints, remove_unfinished

SCHEDULE = SchedulerPreset(1e-3, 1e-5, 1, 100)
WEIGHTS = "model.safetensors"


def make_training() -> tuple[nn.Module, torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    policy = nn.Linear(32, 32)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3)
    return policy, optimizer, make_scheduler(optimizer, SCHEDULE)


def take_step(policy: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for parameter in policy.parameters():  # no autograd: its threads do not survive a fork
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()


def train_without_pause(run: Path, acknowledge: int) -> None:
    """Resume, step, save, prune, for ever; each committed step is written to the pipe `acknowledge`."""
    policy, optimizer, scheduler = make_training()
    step = 0
    if (run / "checkpoints").exists():
        remove_unfinished(run)
    if any((run / "checkpoints").glob("0*")):
        checkpoint = find_checkpoint(run)
        load_training_state(checkpoint, optimizer, scheduler)
        policy.load_state_dict(load_file(checkpoint / PRETRAINED_MODEL / WEIGHTS))
        step = read_progress(checkpoint).step
    while True:
        take_step(policy, optimizer)
        scheduler.step()
        step += 1
        save_checkpoint(
            run,
            Progress(step, step * 2, 2),
            policy=policy,
            optimizer=optimizer,
            scheduler=scheduler,
            save_policy=lambda folder: save_file(policy.state_dict(), folder / WEIGHTS),
        )
        os.write(acknowledge, step.to_bytes(4, "big"))
        prune_checkpoints(run, keep_last=2, keep_every=50)


def kill_while_checkpointing(run: Path, kills: int, seed: int) -> int:
    """Kill `kills` times, check after each, and return the step that was reached.

    Raises:
        AssertionError: an acknowledged checkpoint was lost, or the newest can't be resumed.
    """
    torch.set_num_threads(1)
    chance = random.Random(seed)
    policy, optimizer, _ = make_training()
    take_step(policy, optimizer)  # what torch imports at the first step, children then have
    reached, pause = 0, 0.1
    for kill in range(kills):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            try:
                train_without_pause(run, writer)
            finally:
                os._exit(1)
        os.close(writer)
        # Some whole saves, then a moment inside the next one, however long the disk takes.
        said = b""
        for _ in range(chance.randrange(3)):
            began = time.monotonic()
            said = os.read(reader, 4)
            pause = time.monotonic() - began
        time.sleep(chance.uniform(0.0, pause))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), f"kill {kill}: the child failed by itself"
        said += os.read(reader, 1 << 20)
        os.close(reader)
        acknowledged = int.from_bytes(said[-4:], "big") if said else reached
        if not any((run / "checkpoints").glob("0*")):
            assert acknowledged == 0, (
                f"kill {kill}: step {acknowledged} was saved, and there is no checkpoint"
            )
            continue
        checkpoint = find_checkpoint(run)
        reached = read_progress(checkpoint).step
        # `last` may lag behind a checkpoint whose save was not acknowledged yet, never behind one that was.
        assert reached >= acknowledged, f"kill {kill}: step {acknowledged} was saved, {reached} is found"
        policy, optimizer, scheduler = make_training()
        load_training_state(checkpoint, optimizer, scheduler)
        policy.load_state_dict(load_file(checkpoint / PRETRAINED_MODEL / WEIGHTS))
        assert all(torch.isfinite(tensor).all() for tensor in policy.parameters())
    return reached

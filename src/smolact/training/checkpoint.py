"""Checkpoints of a run, in LeRobot's layout, written atomically.

checkpoints/000200/pretrained_model/   the policy, its processors, train_config.json
checkpoints/000200/training_state/     optimizer, schedule, random generators and step, for resuming
checkpoints/last -> 000200
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from smolact import durable
from smolact.errors import CheckpointError
from smolact.files import read_json, read_json_object, read_tensors
from smolact.policies.configuration import PRETRAINED_MODEL, TRAIN_CONFIG, SchedulerPreset
from smolact.training.random_state import random_state, restore_random_state
from smolact.training.run_folder import (
    LAST,
    OLD_OWN_SETTINGS,
    SETTINGS,
    TRAINING_STATE,
    checkpoint_folder,
    repoint_last,
)
from smolact.training.sharding import shard_like

OPTIMIZER_STATE = "optimizer_state.safetensors"
OPTIMIZER_GROUPS = "optimizer_param_groups.json"
SCHEDULER_STATE = "scheduler_state.json"
RANDOM_STATE = "rng_state.safetensors"
STEP = "training_step.json"


@dataclass(frozen=True)
class Progress:
    """A run's progress."""

    step: int
    samples: int
    """Samples drawn so far: the stream position at which training resumes."""
    batch_size: int = 1
    seconds: float = 0.0
    """Duration of the run so far, of which `lead` seconds before its first step."""
    lead: float = 0.0


def save_checkpoint(
    run: Path,
    progress: Progress,
    *,
    policy: nn.Module,
    optimizer: Optimizer,
    scheduler: LambdaLR,
    save_policy: Callable[[Path], None],
    settings: Mapping[str, Any] | None = None,
    save_more: Callable[[Path], None] | None = None,
    processes: int = 1,
) -> Path:
    """Write a checkpoint of a run and point `last` at it.

    Args:
        save_policy: writes the files of `pretrained_model` into the given folder.
        settings: the run's settings as they were given, by dotted name.
        save_more: writes further files of `training_state` into the given folder.

    Raises:
        CheckpointError: a weight or optimizer value is not finite.
        WriteError: the disk is full or refused; earlier checkpoints and `last` are unchanged.
    """
    nonfinite = [name for name, tensor in policy.named_parameters() if not torch.isfinite(tensor).all()]
    nonfinite += [
        f"{name} of the optimizer"
        for state in optimizer.state.values()
        for name, tensor in state.items()
        if not torch.isfinite(tensor).all()
    ]
    if nonfinite:
        raise CheckpointError(
            f"Step {progress.step} was not saved: {len(nonfinite)} tensors hold NaN or infinity, {nonfinite[0]} first. "
            "Resume from the checkpoint before, with a lower --policy.optimizer_lr."
        )
    folder = checkpoint_folder(run, progress.step)
    if folder.exists():  # left by an earlier, longer run, with other weights
        repoint_last(folder)
        durable.remove_folder(folder)
    with durable.replacing_folder(folder) as temporary:
        (temporary / PRETRAINED_MODEL).mkdir()
        save_policy(temporary / PRETRAINED_MODEL)
        state = temporary / TRAINING_STATE
        state.mkdir()
        _save_optimizer(state, optimizer)
        _write_json(
            state / SCHEDULER_STATE,
            scheduler.state_dict() | {"lr_lambdas": [None] * len(optimizer.param_groups)},
        )
        durable.save_tensors(state / RANDOM_STATE, random_state())
        step = {
            "step": progress.step,
            "num_processes": processes,
            "batch_size": progress.batch_size,
            "samples": progress.samples,
            "seconds": round(progress.seconds, 2),
            "lead": round(progress.lead, 2),
        }
        _write_json(state / STEP, step)
        if save_more is not None:
            save_more(state)
        _write_json(state / SETTINGS, dict(settings or {}))
    durable.link(folder.parent / LAST, folder.name)
    return folder


def read_progress(checkpoint: Path) -> Progress:
    """Read the progress of a checkpoint.

    Raises:
        CheckpointError: the file is missing or corrupt.
    """
    path = checkpoint / TRAINING_STATE / STEP
    data = read_json(path, _REMEDY)
    try:
        step, batch_size = int(data["step"]), int(data.get("batch_size", 0))
        # LeRobot's files do not count samples; newer ones count data-parallel workers, not processes.
        workers = int(data.get("dp_world_size", data.get("num_processes", 1)))
        samples = int(data.get("samples", step * batch_size * workers))
        seconds, lead = float(data.get("seconds", 0.0)), float(data.get("lead", 0.0))
        return Progress(step, samples, batch_size, seconds, lead)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} does not say which step it is of: {data!r:.80}. {_REMEDY}") from error


def read_schedule(checkpoint: Path) -> SchedulerPreset | None:
    """Return the learning-rate schedule of a smolact run; None for a run of LeRobot, whose files do not contain it.

    Raises:
        CheckpointError: the file is missing or corrupt.
    """
    state = checkpoint / TRAINING_STATE
    if not (state / SETTINGS).is_file() and not (state / OLD_OWN_SETTINGS).is_file():
        return None
    path = checkpoint / PRETRAINED_MODEL / TRAIN_CONFIG
    data = read_json_object(path, _REMEDY)
    try:
        names = [field.name for field in fields(SchedulerPreset)]
        return SchedulerPreset(**{name: data["scheduler"][name] for name in names})
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path} does not tell the run's schedule ({error}). {_REMEDY}") from error


def load_training_state(checkpoint: Path, optimizer: Optimizer, scheduler: LambdaLR) -> None:
    """Restore optimizer, schedule and all random generators from `checkpoint`.

    The rates follow the schedule of `scheduler`, that of this run's --steps.

    Raises:
        CheckpointError: a file is missing, corrupt, or of another model; the message names it.
    """
    state = checkpoint / TRAINING_STATE
    _load_optimizer(state, optimizer)
    path = state / SCHEDULER_STATE
    data = read_json(path, _REMEDY)
    try:
        done = int(data["last_epoch"])
        rates = [float(rate) for rate in data["base_lrs"]]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is not the state of a schedule. {_REMEDY}") from error
    if len(rates) != len(optimizer.param_groups):
        raise CheckpointError(
            f"{path} is of {len(rates)} parameter groups, this policy has {len(optimizer.param_groups)}."
        )
    _move_schedule(scheduler, optimizer, done)
    path = state / RANDOM_STATE
    tensors = read_tensors(path, _REMEDY)
    try:
        restore_random_state(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} does not hold the states of the random generators: {error}. {_REMEDY}"
        ) from error


_REMEDY = "Resume from another checkpoint (--config_path=CHECKPOINT/pretrained_model/train_config.json)."


def _save_optimizer(folder: Path, optimizer: Optimizer) -> None:
    state = optimizer.state_dict()
    tensors = {
        f"state/{index}/{name}": torch.as_tensor(value).contiguous()
        for index, values in state["state"].items()
        for name, value in values.items()
    }
    durable.save_tensors(folder / OPTIMIZER_STATE, tensors)
    _write_json(folder / OPTIMIZER_GROUPS, state["param_groups"])


def _load_optimizer(folder: Path, optimizer: Optimizer) -> None:
    groups_path, state_path = folder / OPTIMIZER_GROUPS, folder / OPTIMIZER_STATE
    saved = read_json(groups_path, _REMEDY)
    tensors = read_tensors(state_path, _REMEDY)
    groups = optimizer.state_dict()["param_groups"]
    try:
        sizes = [len(group["params"]) for group in saved]
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            _, index, field = name.split("/")
            state.setdefault(int(index), {})[field] = tensor
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{groups_path} and {state_path} are not an optimizer's state. {_REMEDY}"
        ) from error
    if sizes != [len(group["params"]) for group in groups]:
        raise CheckpointError(
            f"{groups_path} is of an optimizer with {sizes} parameters, this policy trains "
            f"{[len(group['params']) for group in groups]}. Resume with the freezing flags and --lr_multipliers that the run had; a run of "
            f"LeRobot goes on as a new one from its weights: --policy.path={folder.parent}"
        )
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    _check_shapes(state_path, state, parameters)
    sharded = {
        index: {name: shard_like(parameters[index], value) for name, value in values.items()}
        for index, values in state.items()
    }
    # Hyperparameters are this run's (a flag may have changed them), moments are the checkpoint's.
    optimizer.load_state_dict({"state": sharded, "param_groups": groups})


def _check_shapes(path: Path, state: Mapping[int, Mapping[str, Tensor]], parameters: list[Tensor]) -> None:
    for index, values in state.items():
        shape = tuple(parameters[index].shape) if index < len(parameters) else None
        for name in ("exp_avg", "exp_avg_sq", "step"):
            if name not in values:
                raise CheckpointError(
                    f"{path} lacks 'state/{index}/{name}': it is not AdamW's state. {_REMEDY}"
                )
            if name != "step" and tuple(values[name].shape) != shape:
                raise CheckpointError(
                    f"{path}: 'state/{index}/{name}' has the shape {tuple(values[name].shape)}, the policy's parameter "
                    f"{shape or 'is not there'}. The checkpoint is of another policy. {_REMEDY}"
                )


def _move_schedule(scheduler: LambdaLR, optimizer: Optimizer, done: int) -> None:
    """Advance the schedule to `done` steps, without the closed form that not every schedule has."""
    state = scheduler.state_dict()
    scheduler.load_state_dict(state | {"last_epoch": done, "_step_count": done + 1})
    rates = [
        base * factor(done) for base, factor in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
    ]
    scheduler._last_lr = rates
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def _write_json(path: Path, value: Any) -> None:
    path.write_text(
        json.dumps(value, indent=4, allow_nan=False) + "\n"
    )  # the folder's rename makes it durable

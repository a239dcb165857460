"""The folder of a run: its lock, and its files before the first checkpoint."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path

from smolact import durable
from smolact.errors import CheckpointError, ConfigError
from smolact.files import read_json
from smolact.lock import LOCK_FILE, writing_into
from smolact.training.checkpoint import CHECKPOINTS, LAST, remove_unfinished
from smolact.training.tracking import METRICS

STARTED_FLAGS = "begun.json"
"""The flags of a run that has no checkpoint yet."""
_UNFINISHED_RUN_FILES = (
    *(
        STARTED_FLAGS,
        METRICS,
        LOCK_FILE,
        CHECKPOINTS,
        "tensorboard",
        "wandb",
        "videos",
        "curves.png",
        "report.html",
    ),
    *(f"{durable.TEMPORARY_PREFIX}*", "bad_batch_*.safetensors", "*.log"),
)


@contextlib.contextmanager
def reserve(run: Path, *, resumes: bool = False, restart: bool = False) -> Iterator[None]:
    """Lock a run's folder for writing within the block.

    Args:
        run: the folder; it is created if it does not exist.
        resumes: a run with a checkpoint resumes there.
        restart: a run without a checkpoint may start again there.

    Raises:
        WriteError: another process writes there; the message names it.
        ConfigError: the folder contains something that a new run must not touch.
    """
    if run.exists() and not run.is_dir():
        raise _used_error(run)
    with writing_into(run, instead=None if resumes else "choose another --output_dir") as is_alone:
        if not resumes:
            check_unused(run, restart=restart)
        if is_alone:
            remove_unfinished(run)  # with the lock held, partial files are a dead run's
        try:
            yield
        finally:
            if set(_names(run)) <= {STARTED_FLAGS}:  # the run ended before it wrote anything else
                (run / STARTED_FLAGS).unlink(missing_ok=True)


def check_unused(run: Path, *, restart: bool = False) -> None:
    """Raise a `ConfigError` if a new run can't use this folder.

    Args:
        run: the folder; it need not exist.
        restart: it may contain a run without a checkpoint.
    """
    if run.exists() and not run.is_dir():
        raise _used_error(run)
    if is_unfinished(run):
        if not restart and _names(run):
            raise ConfigError(
                f"--output_dir={run} holds a run that was stopped before its first checkpoint, so there is nothing to go on "
                "from. Begin it anew there with --resume=true, or choose another folder."
            )
    elif _names(run):
        raise _used_error(run)


def is_unfinished(run: Path) -> bool:
    """Whether the folder contains a run without a checkpoint, and nothing else."""
    if not run.is_dir():
        return False
    names = set(_names(run))
    known = all(any(fnmatch(name, pattern) for pattern in _UNFINISHED_RUN_FILES) for name in names)
    began = STARTED_FLAGS in names or (not names and (run / LOCK_FILE).exists())
    checkpoints = run / CHECKPOINTS
    saved = checkpoints.is_dir() and any(
        not entry.name.startswith(durable.TEMPORARY_PREFIX) for entry in checkpoints.iterdir()
    )
    return began and known and not saved


def save_flags(run: Path, flags: Sequence[str]) -> None:
    """Save the flags of a run until its first checkpoint contains them."""
    durable.write_json(run / STARTED_FLAGS, list(flags))


def remove_flags(run: Path) -> None:
    """Remove the saved flags of a run that is complete or has a checkpoint."""
    (run / STARTED_FLAGS).unlink(missing_ok=True)


def read_saved_flags(run: Path) -> list[str]:
    """Return the saved flags of a run; empty if it was killed before it saved them.

    Raises:
        CheckpointError: the file is corrupt.
    """
    path = run / STARTED_FLAGS
    if not path.is_file():
        return []
    remedy = "Begin the run in another folder, with all its flags."
    flags = read_json(path, remedy)
    if not isinstance(flags, list) or not all(isinstance(flag, str) for flag in flags):
        raise CheckpointError(f"{path} does not say how the run was begun: it is no list of flags. {remedy}")
    return flags


def resolve_last(checkpoint: Path) -> Path:
    """Resolve the link `last`, which may change its target meanwhile."""
    return checkpoint.resolve() if checkpoint.name == LAST else checkpoint


def _names(run: Path) -> list[str]:
    return sorted(entry.name for entry in run.iterdir() if entry.name != LOCK_FILE) if run.is_dir() else []


def _used_error(run: Path) -> ConfigError:
    if any((run / CHECKPOINTS).glob("[0-9]*")):
        text = f"a run already. Continue it with --resume=true --output_dir={run}, or choose another folder."
    elif (run / METRICS).is_file():
        text = "a run without a checkpoint, so there is nothing to go on from. Remove the folder, or choose another."
    else:
        text = "something already. A run needs a folder of its own: choose another."
    return ConfigError(f"--output_dir={run} holds {text}")

"""The folder of a run: who may write into it, and what a run leaves there that ended before its first checkpoint."""

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
_OF_A_BEGUN_RUN = (
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
def reserve(run: Path, *, resumes: bool = False, anew: bool = False) -> Iterator[None]:
    """Be the only one who writes into a run's folder within the block.

    Args:
        run: the folder; it is made if it is not there.
        resumes: a run that has a checkpoint goes on there.
        anew: a run that has none may begin again there.

    Raises:
        WriteError: another process writes there, whom the message names.
        ConfigError: the folder holds something that a new run must not touch.
    """
    if run.exists() and not run.is_dir():
        raise _used(run)
    with writing_into(run, instead=None if resumes else "choose another --output_dir") as is_alone:
        if not resumes:
            check_unused(run, anew=anew)
        if is_alone:
            remove_unfinished(run)  # nobody else writes: what is unfinished is a dead run's
        try:
            yield
        finally:
            if set(_names(run)) <= {STARTED_FLAGS}:  # it ended before it wrote anything else
                (run / STARTED_FLAGS).unlink(missing_ok=True)


def check_unused(run: Path, *, anew: bool = False) -> None:
    """Raise a `ConfigError` if a new run can't have this folder.

    Args:
        run: need not be there.
        anew: it may hold what a run left that ended before its first checkpoint.
    """
    if run.exists() and not run.is_dir():
        raise _used(run)
    if is_unfinished(run):
        if not anew and _names(run):
            raise ConfigError(
                f"--output_dir={run} holds a run that was stopped before its first checkpoint, so there is nothing to go on "
                "from. Begin it anew there with --resume=true, or choose another folder."
            )
    elif _names(run):
        raise _used(run)


def is_unfinished(run: Path) -> bool:
    """Whether a run was begun in this folder, has no checkpoint, and nothing else is there."""
    if not run.is_dir():
        return False
    names = set(_names(run))
    known = all(any(fnmatch(name, pattern) for pattern in _OF_A_BEGUN_RUN) for name in names)
    began = STARTED_FLAGS in names or (not names and (run / LOCK_FILE).exists())
    checkpoints = run / CHECKPOINTS
    saved = checkpoints.is_dir() and any(
        not entry.name.startswith(durable.TEMPORARY_PREFIX) for entry in checkpoints.iterdir()
    )
    return began and known and not saved


def save_flags(run: Path, flags: Sequence[str]) -> None:
    """Keep the flags of a run until its first checkpoint keeps them."""
    durable.write_json(run / STARTED_FLAGS, list(flags))


def remove_flags(run: Path) -> None:
    """The run is complete, or its checkpoint keeps its settings."""
    (run / STARTED_FLAGS).unlink(missing_ok=True)


def read_saved_flags(run: Path) -> list[str]:
    """The flags that a run was begun with; none where it was killed before it could note them.

    Raises:
        CheckpointError: the file is damaged.
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
    """The checkpoint that is meant: the link `last` leads to another one when its run has gone on meanwhile."""
    return checkpoint.resolve() if checkpoint.name == LAST else checkpoint


def _names(run: Path) -> list[str]:
    return sorted(entry.name for entry in run.iterdir() if entry.name != LOCK_FILE) if run.is_dir() else []


def _used(run: Path) -> ConfigError:
    if any((run / CHECKPOINTS).glob("[0-9]*")):
        what = f"a run already. Continue it with --resume=true --output_dir={run}, or choose another folder."
    elif (run / METRICS).is_file():
        what = "a run without a checkpoint, so there is nothing to go on from. Remove the folder, or choose another."
    else:
        what = "something already. A run needs a folder of its own: choose another."
    return ConfigError(f"--output_dir={run} holds {what}")

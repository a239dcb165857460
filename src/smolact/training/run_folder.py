"""The folder of a run: its layout, which is LeRobot's, its lock, and its files before the first checkpoint.

checkpoints/000200/pretrained_model/   the policy, its processors, train_config.json
checkpoints/000200/training_state/     optimizer, schedule, random generators, step and settings, for resuming
checkpoints/last -> 000200
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from smolact import durable
from smolact.errors import CheckpointError, ConfigError, NotFoundError, list_siblings
from smolact.files import read_json
from smolact.flags import ParsedValue, read_flags
from smolact.lock import LOCK_FILE, writing_into
from smolact.policies.configuration import PRETRAINED_MODEL
from smolact.training.tracking import METRICS

logger = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
LAST = "last"
TRAINING_STATE = "training_state"
SETTINGS = "settings.json"
"""The settings of the run as they were given, in a checkpoint's `training_state`."""
OLD_GIVEN_SETTINGS, OLD_OWN_SETTINGS = "explicit_settings.json", "own_settings.json"
"""What older checkpoints have in its place: the names that were given, and the values that `train_config.json` lacks."""
BEGUN = "begun.json"
"""The settings of a run that has no checkpoint yet."""
_UNFINISHED_RUN_FILES = (
    *(BEGUN, METRICS, LOCK_FILE, CHECKPOINTS, "tensorboard", "wandb", "videos", "curves.png", "report.html"),
    *(f"{durable.TEMPORARY_PREFIX}*", "bad_batch_*.safetensors", "*.log"),
)


@contextlib.contextmanager
def reserve(run: Path, *, resumes: bool = False, restart: bool = False) -> Iterator[None]:
    """Lock a run's folder for writing within the block.

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
            if set(_names(run)) <= {BEGUN}:  # the run ended before it wrote anything else
                (run / BEGUN).unlink(missing_ok=True)


def check_unused(run: Path, *, restart: bool = False) -> None:
    """Raise a `ConfigError` if a new run can't use this folder."""
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
    began = BEGUN in names or (not names and (run / LOCK_FILE).exists())
    checkpoints = run / CHECKPOINTS
    saved = checkpoints.is_dir() and any(
        not entry.name.startswith(durable.TEMPORARY_PREFIX) for entry in checkpoints.iterdir()
    )
    return began and known and not saved


def save_begun(run: Path, settings: Mapping[str, Any]) -> None:
    """Save the settings of a run, by dotted name, until its first checkpoint contains them."""
    durable.write_json(run / BEGUN, dict(settings))


def remove_begun(run: Path) -> None:
    """Remove the saved settings of a run that is complete or has a checkpoint."""
    (run / BEGUN).unlink(missing_ok=True)


def read_begun(run: Path) -> list[ParsedValue]:
    """Return the saved settings of a run; empty if it was killed before it saved them.

    Raises:
        CheckpointError: the file is corrupt.
    """
    path = run / BEGUN
    if not path.is_file():
        return []
    remedy = "Begin the run in another folder, with all its flags."
    saved = read_json(path, remedy)
    if isinstance(saved, list) and all(isinstance(flag, str) for flag in saved):  # of an older version
        return list(read_flags(saved))
    if not isinstance(saved, dict):
        raise CheckpointError(f"{path} does not say how the run was begun: it holds no settings. {remedy}")
    return [ParsedValue.of(name, value, str(path)) for name, value in saved.items()]


def checkpoint_folder(run: Path, step: int) -> Path:
    """Return the folder of the checkpoint after `step` steps."""
    return run / CHECKPOINTS / f"{step:06d}"


def prune_checkpoints(run: Path, keep_last: int, keep_every: int) -> list[Path]:
    """Remove old checkpoints, and return their folders.

    Args:
        keep_last: number of newest checkpoints to keep; 0 keeps all.
        keep_every: also keep checkpoints at multiples of this step number; 0: none.
    """
    if keep_last == 0:
        return []
    last = (run / CHECKPOINTS / LAST).resolve()
    old = sorted(_numbered_checkpoints(run / CHECKPOINTS))[:-keep_last]
    removed = [
        folder
        for step, folder in old
        if folder.resolve() != last and not (keep_every and step % keep_every == 0)
    ]
    for folder in removed:
        durable.remove_folder(folder)
    return removed


def remove_unfinished(run: Path) -> None:
    """Remove the partial checkpoints that a killed run left."""
    if (run / CHECKPOINTS).is_dir():
        for path in durable.remove_litter(run / CHECKPOINTS):
            logger.info("Removed %s, which was being written or removed when the run was killed.", path)


def repoint_last(folder: Path) -> None:
    """Point `last` at the newest other checkpoint before `folder` is replaced."""
    link = folder.parent / LAST
    others = [other for _, other in sorted(_numbered_checkpoints(folder.parent)) if other != folder]
    if link.is_symlink() and link.resolve() == folder.resolve() and others:
        durable.link(link, others[-1].name)


def find_checkpoint(path: Path) -> Path:
    """Find the checkpoint at `path`: a run's last one, a checkpoint's folder, or a file or folder inside it.

    Raises:
        NotFoundError: there is none.
        CheckpointError: it contains a policy, but no training state to resume from.
    """
    candidates = [path / CHECKPOINTS / LAST, path / LAST, path, path.parent, path.parent.parent]
    for candidate in candidates:
        if (candidate / TRAINING_STATE).is_dir():
            return candidate.resolve()
    for run in (path, path.parent):
        numbered = sorted(_numbered_checkpoints(run / CHECKPOINTS if (run / CHECKPOINTS).is_dir() else run))
        if numbered:
            logger.warning(
                "'%s' leads nowhere; taking the newest checkpoint, %s.", run / LAST, numbered[-1][1]
            )
            return numbered[-1][1].resolve()
    for candidate in candidates:
        if (candidate / PRETRAINED_MODEL).is_dir() or any(candidate.glob("*model.safetensors")):
            raise CheckpointError(
                f"{candidate} holds a policy but no {TRAINING_STATE} folder, so its run can't be resumed. Start a new run "
                f"from its weights: --policy.path={candidate}"
            )
    if (path / "metrics.jsonl").is_file():
        raise NotFoundError(
            f"The run {path} has no checkpoint, so there is nothing to go on from, and the folder holds more than a run leaves "
            "that was stopped before its first one. Start it again in another folder (--output_dir)."
        )
    raise NotFoundError(f"There is no checkpoint at {path}. {list_siblings(path.absolute())}")


def _numbered_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    if not folder.is_dir():
        return []
    return [
        (int(entry.name), entry)
        for entry in folder.iterdir()
        if entry.name.isdigit() and (entry / TRAINING_STATE).is_dir()
    ]


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

"""What can go wrong, as a tree. Catch `SmolactError` for all of it.

    SmolactError
    ├── ConfigError               a setting that can't work, or a flag that does not exist
    ├── NotFoundError             a folder, file or Hub id that is not there
    ├── HubError                  the Hub refused, limited or could not be reached
    ├── DatasetError              a dataset that is damaged, or not what its metadata says
    │   └── VideoError            a video file that can't be decoded or encoded
    ├── CheckpointError           a checkpoint that is damaged or incomplete
    │   └── WeightsError          weights that are missing, left over or of another shape
    ├── FeatureError              a camera, state or action that is missing or does not fit
    │   └── BadObservationError   an observation that a policy can't be given
    ├── ActionTokensError         action tokens that are no chunk of actions
    ├── StatisticsError           a normalization statistic that is missing or not finite
    ├── TrainingError             a run that can't go on: its loss is not finite
    ├── DeviceError               a device that was asked for and is not there
    ├── RobotError                a robot, camera or teleoperator that does not answer, or does not fit
    │   └── UnsafeActionError     actions that were refused before they reached the motors
    ├── ServerError               a policy server that does not answer, or does not let anybody in
    ├── WriteError                the disk is full or refused a write
    ├── OutOfMemoryError          the memory ran out, or would
    ├── EnvironmentNotFoundError  an environment id that nobody registered
    └── MissingDependencyError    an optional package that is not installed

Each message says what was expected, what was found, and what to do about it. Errors that a caller would expect as a
builtin also are that builtin: `ConfigError` is a `ValueError`, `NotFoundError` a `FileNotFoundError`.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType


class SmolactError(Exception):
    """The root of every error that smolact raises on purpose."""


class ConfigError(SmolactError, ValueError):
    """A setting that can't work, or a flag that does not exist."""


class NotFoundError(SmolactError, FileNotFoundError):
    """A folder, file or Hub id that is not there."""


class HubError(SmolactError, OSError):
    """The Hub refused, limited or could not be reached."""


class DatasetError(SmolactError, ValueError):
    """A dataset that is damaged, or not what its metadata says."""


class VideoError(DatasetError):
    """A video file that can't be decoded or encoded."""


class CheckpointError(SmolactError, ValueError):
    """A checkpoint that is damaged or incomplete."""


class WeightsError(CheckpointError):
    """Weights that are missing, left over or of another shape."""


class FeatureError(SmolactError, ValueError):
    """A camera, state or action that is missing or does not fit."""


class BadObservationError(FeatureError):
    """An observation that a policy can't be given: it lacks an input, or a number is nowhere near the training's data."""


class ActionTokensError(SmolactError, ValueError):
    """Action tokens that are no chunk of actions."""


class StatisticsError(SmolactError, ValueError):
    """A normalization statistic that is missing or not finite."""


class TrainingError(SmolactError, RuntimeError):
    """A run that can't go on: its loss is not finite."""


class DeviceError(SmolactError, RuntimeError):
    """A device that was asked for and is not there."""


class RobotError(SmolactError, RuntimeError):
    """A robot, camera or teleoperator that does not answer, or does not fit."""


class UnsafeActionError(RobotError):
    """Actions that were refused before they reached the motors."""


class ServerError(SmolactError, ConnectionError):
    """A policy server that does not answer, or does not let anybody in."""


class WriteError(SmolactError, OSError):
    """The disk is full or refused a write."""


class OutOfMemoryError(SmolactError, MemoryError):
    """The memory of the machine or of the GPU ran out, or would."""


class EnvironmentNotFoundError(SmolactError, LookupError):
    """An environment id that nobody registered."""


class MissingDependencyError(SmolactError, ImportError):
    """An optional package that is not installed."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?` for the nearest of `known`, or an empty string when nothing is near."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean '{near[0]}'?" if near else ""


def list_siblings(path: Path, most: int = 8) -> str:
    """A sentence that lists what lies in the nearest folder above `path` that exists."""
    folder = path.parent
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    names = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in folder.iterdir())
    names = [name for name in names if not name.startswith(".")]
    shown = ", ".join(names[:most]) + (", …" if len(names) > most else "") if names else "nothing"
    return f"In {folder} there is: {shown}.{did_you_mean(path.name, [name.rstrip('/') for name in names])}"


def optional_import(module: str, extra: str) -> ModuleType:
    """Import an optional `module`, or raise a `MissingDependencyError` that names the extra to install."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != module.split(".")[0]:
            raise  # the package is there; something that it needs is not
        raise MissingDependencyError(
            f"This needs the package '{module.split('.')[0]}', which is not installed. Run: pip install 'smolact[{extra}]'"
        ) from error

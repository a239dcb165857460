"""Exceptions, as a tree. `SmolactError` catches all of them.

    SmolactError
    ├── ConfigError               an invalid setting, or an unknown flag
    ├── NotFoundError             a missing folder, file or Hub id
    ├── HubError                  the Hub refused, limited or could not be reached
    ├── DatasetError              a corrupt dataset, or one that contradicts its metadata
    │   └── VideoError            a video file that can't be decoded or encoded
    ├── CheckpointError           a corrupt or incomplete checkpoint
    │   └── WeightsError          missing, unexpected or wrongly shaped weights
    ├── FeatureError              a missing or incompatible camera, state or action
    │   └── BadObservationError   an observation that a policy can't be given
    ├── ActionTokensError         action tokens that do not decode to a chunk
    ├── StatisticsError           a missing or non-finite normalization statistic
    ├── TrainingError             a training run that can't continue: its loss is not finite
    ├── DeviceError               a requested device that does not exist
    ├── RobotError                a robot, camera or teleoperator that does not answer or fit
    │   └── UnsafeActionError     actions refused before they reached the motors
    ├── ServerError               a policy server that does not answer or refuses access
    ├── WriteError                a full disk or a failed write
    ├── OutOfMemoryError          the memory ran out, or would run out
    ├── EnvironmentNotFoundError  an environment id that is not registered
    └── MissingDependencyError    an optional package that is not installed

Each message has the expected value, the actual one, and a remedy. Where a builtin exception fits, an error is also that
builtin: `ConfigError` is a `ValueError`, `NotFoundError` a `FileNotFoundError`.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType


class SmolactError(Exception):
    """The root of all exceptions that smolact raises on purpose."""


class ConfigError(SmolactError, ValueError):
    """An invalid setting, or an unknown flag."""


class NotFoundError(SmolactError, FileNotFoundError):
    """A missing folder, file or Hub id."""


class HubError(SmolactError, OSError):
    """The Hub refused, limited or could not be reached."""


class DatasetError(SmolactError, ValueError):
    """A corrupt dataset, or one that contradicts its metadata."""


class VideoError(DatasetError):
    """A video file that can't be decoded or encoded."""


class CheckpointError(SmolactError, ValueError):
    """A corrupt or incomplete checkpoint."""


class WeightsError(CheckpointError):
    """Missing, unexpected or wrongly shaped weights."""


class FeatureError(SmolactError, ValueError):
    """A missing or incompatible camera, state or action."""


class BadObservationError(FeatureError):
    """An observation that does not fit a policy, or is nowhere near the training's data."""


class ActionTokensError(SmolactError, ValueError):
    """Action tokens that do not decode to a chunk."""


class StatisticsError(SmolactError, ValueError):
    """A missing or non-finite normalization statistic."""


class TrainingError(SmolactError, RuntimeError):
    """A training run that can't continue: its loss is not finite."""


class DeviceError(SmolactError, RuntimeError):
    """A requested device that does not exist."""


class RobotError(SmolactError, RuntimeError):
    """A robot, camera or teleoperator that does not answer or fit."""


class UnsafeActionError(RobotError):
    """Actions refused before they reached the motors."""


class ServerError(SmolactError, ConnectionError):
    """A policy server that does not answer or refuses access."""


class WriteError(SmolactError, OSError):
    """A full disk or a failed write."""


class OutOfMemoryError(SmolactError, MemoryError):
    """The memory of the machine or of the GPU ran out, or would run out."""


class EnvironmentNotFoundError(SmolactError, LookupError):
    """An environment id that is not registered."""


class MissingDependencyError(SmolactError, ImportError):
    """An optional package that is not installed."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ` Did you mean 'x'?` for the closest of `known`, or an empty string if none is close."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean '{matches[0]}'?" if matches else ""


def list_siblings(path: Path, most: int = 8) -> str:
    """Return a sentence that lists the nearest existing folder above `path`."""
    folder = path.parent
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    names = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in folder.iterdir())
    names = [name for name in names if not name.startswith(".")]
    shown = ", ".join(names[:most]) + (", …" if len(names) > most else "") if names else "nothing"
    return f"In {folder} there is: {shown}.{did_you_mean(path.name, [name.rstrip('/') for name in names])}"


def missing_plugin(name: str, extra: str) -> MissingDependencyError:
    """Return the error that the command or module `name` is part of a plugin that is not installed; `extra` installs it."""
    return MissingDependencyError(
        f"'{name}' is part of a plugin that is not installed. Run: pip install 'smolact[{extra}]', "
        f"or in a clone of smolact: scripts/install {extra}"
    )


def optional_import(module: str, extra: str) -> ModuleType:
    """Import an optional `module`, or raise a `MissingDependencyError` that names the extra to install."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != module.split(".")[0]:
            raise  # the package is installed; one of its dependencies is not
        raise MissingDependencyError(
            f"This needs the package '{module.split('.')[0]}', which is not installed. Run: pip install 'smolact[{extra}]'"
        ) from error

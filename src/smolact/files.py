"""JSON and tensors of a checkpoint from the disk, or a `CheckpointError` that names the file and what to do about it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from smolact.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


def read_json(path: Path, remedy: str, if_missing: str | None = None) -> Any:
    """What the JSON file `path` holds.

    Args:
        path: the file.
        remedy: a sentence that ends the message of an error: what its reader can do.
        if_missing: that sentence for a file that is not there, if it is another.

    Raises:
        CheckpointError: the file is missing, can't be read, or is no JSON.
    """
    data = _read(path, Path.read_bytes, remedy, if_missing)
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: not valid JSON ({error}). {remedy}") from error


def read_json_object(path: Path, remedy: str, if_missing: str | None = None) -> dict[str, Any]:
    """The object that the JSON file `path` holds; arguments and errors are those of `read_json`."""
    data = read_json(path, remedy, if_missing)
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} holds {type(data).__name__}, expected an object. {remedy}")
    return data


def read_tensors(path: Path, remedy: str, if_missing: str | None = None) -> dict[str, Tensor]:
    """The tensors of the safetensors file `path`, on the CPU; arguments as for `read_json`.

    Raises:
        CheckpointError: the file is missing, can't be read, or is no safetensors file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return _read(path, load_file, remedy, if_missing)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"{path} is damaged: not a valid safetensors file ({error}). {remedy}"
        ) from error


def _read(path: Path, read: Callable[[Path], T], remedy: str, if_missing: str | None) -> T:
    try:
        return read(path)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"The checkpoint is incomplete: {path} is missing. {if_missing or remedy}"
        ) from error
    except OSError as error:
        raise CheckpointError(f"{path} can't be read ({error.strerror or error}). {remedy}") from error

"""Reads JSON and tensors from disk; every JSON file is read here.

`read_json` and `read_tensors` are for checkpoints: their `CheckpointError` names the file and the remedy. Modules with
their own errors, such as datasets, use `read_bytes` and `parse_json`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from smolact.errors import CheckpointError
from smolact.openable import check_own, check_regular

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

_BLANKS = re.compile(r"[ \t\r\n]*")


def read_bytes(path: Path) -> bytes:
    """The content of a regular file.

    Raises:
        OSError: the file is missing, not regular, or unreadable.
    """
    check_regular(path)
    return path.read_bytes()


def parse_json(data: bytes | str, *, finite: bool = False) -> Any:
    """The value of a JSON text in UTF-8 (or UTF-16, UTF-32), with or without a byte order mark.

    Args:
        finite: reject NaN and infinity, which Python writes and JSON lacks.

    Raises:
        ValueError: the data is not JSON, or not text.
    """
    try:
        return json.loads(
            data if isinstance(data, str) else _text(data), parse_constant=_reject if finite else None
        )
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def parse_json_lines(data: bytes) -> list[tuple[int, Any]]:
    """The values of a JSON-lines text, one per line, each with its line number (from 1).

    Only a line feed ends a line: U+2028, U+0085 and the like are valid in JSON text. Values spread over several lines, or
    in one list, by an editor are accepted too; each then has the line number where it, or the list, begins.

    Raises:
        ValueError: a line is not JSON; its number is in the message.
    """
    text = _text(data)
    values = []
    for number, line in enumerate(text.split("\n"), start=1):
        try:
            if stripped := line.strip("\ufeff \t\r"):  # concatenated files have a byte order mark inside
                values.append((number, parse_json(stripped)))
        except ValueError as error:
            multiline = _parse_multiline(text)
            if multiline is None:
                raise ValueError(f"line {number}: {error}") from error
            values = multiline
            break
    lists = [(number, value) for number, value in values if isinstance(value, list)]
    return [(lists[0][0], value) for value in lists[0][1]] if len(values) == len(lists) == 1 else values


def read_json(path: Path, remedy: str, if_missing: str | None = None) -> Any:
    """The content of the JSON file `path`.

    Args:
        remedy: the last sentence of the error message, which names the remedy.
        if_missing: that sentence for a missing file, if it differs.

    Raises:
        CheckpointError: the file is missing, unreadable, or not JSON.
    """
    data = _read(path, Path.read_bytes, remedy, if_missing)
    try:
        return parse_json(data)
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: not valid JSON ({error}). {remedy}") from error


def read_json_object(path: Path, remedy: str, if_missing: str | None = None) -> dict[str, Any]:
    """The object in the JSON file `path`; arguments and errors are those of `read_json`."""
    data = read_json(path, remedy, if_missing)
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} holds {type(data).__name__}, expected an object. {remedy}")
    return data


def read_tensors(path: Path, remedy: str, if_missing: str | None = None) -> dict[str, Tensor]:
    """The tensors of the safetensors file `path`, on the CPU; arguments as for `read_json`.

    Raises:
        CheckpointError: the file is missing, unreadable, or not a safetensors file.
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
        check_own(path)
        return read(path)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"The checkpoint is incomplete: {path} is missing. {if_missing or remedy}"
        ) from error
    except OSError as error:
        raise CheckpointError(f"{path} can't be read ({error.strerror or error}). {remedy}") from error


def _text(data: bytes) -> str:
    return data.decode(json.detect_encoding(data))


def _reject(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON")


def _parse_multiline(text: str) -> list[tuple[int, Any]] | None:
    """The values of consecutive JSON texts regardless of line breaks, each with its first line's number; None if it is not JSON."""
    decoder, values = json.JSONDecoder(), list[tuple[int, Any]]()
    position, line = 0, 1
    while (begin := _BLANKS.match(text, position).end()) < len(text):  # type: ignore[union-attr]
        try:
            value, end = decoder.raw_decode(text, begin)
        except (ValueError, RecursionError):
            return None
        line += text.count("\n", position, begin)
        values.append((line, value))
        line += text.count("\n", begin, end)
        position = end
    return values

"""JSON and tensors from the disk: every JSON file is read here, whatever wrote it.

`read_json` and `read_tensors` are for a checkpoint: their `CheckpointError` names the file and what to do about it. Datasets and others,
whose errors are their own, take `read_bytes` and `parse_json`.
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
    """What is in a regular file.

    Raises:
        OSError: it is not there, is no regular file, or can't be read.
    """
    check_regular(path)
    return path.read_bytes()


def parse_json(data: bytes | str, *, finite: bool = False) -> Any:
    """The value that a JSON text holds, in UTF-8 (or UTF-16, UTF-32), with or without a byte order mark.

    Args:
        data: the text.
        finite: refuse NaN and infinity, which Python writes and JSON has not.

    Raises:
        ValueError: it is no JSON, or no text.
    """
    try:
        return json.loads(
            data if isinstance(data, str) else _text(data), parse_constant=_refuse if finite else None
        )
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def parse_json_lines(data: bytes) -> list[tuple[int, Any]]:
    """The values of a JSON-lines text, a value a line, each with the number of its line (from 1).

    Only a line feed ends a line: U+2028, U+0085 and the like are part of a text in JSON. Values that somebody's editor has spread
    over several lines, or gathered in one list, are read too; each then has the number of the line where it, or the list, begins.

    Raises:
        ValueError: a line is no JSON; its number is in the message.
    """
    text = _text(data)
    found = []
    for number, line in enumerate(text.split("\n"), start=1):
        try:
            if stripped := line.strip("\ufeff \t\r"):  # a mark stands inside where two files were joined
                found.append((number, parse_json(stripped)))
        except ValueError as error:
            spread = _spread(text)
            if spread is None:
                raise ValueError(f"line {number}: {error}") from error
            found = spread
            break
    lists = [(number, value) for number, value in found if isinstance(value, list)]
    return [(lists[0][0], value) for value in lists[0][1]] if len(found) == len(lists) == 1 else found


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
        return parse_json(data)
    except ValueError as error:
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


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON")


def _spread(text: str) -> list[tuple[int, Any]] | None:
    """The values of a JSON text one after the other, wherever lines end, each with the line where it begins; None if it is none."""
    decoder, found = json.JSONDecoder(), list[tuple[int, Any]]()
    place, line = 0, 1
    while (begin := _BLANKS.match(text, place).end()) < len(text):  # type: ignore[union-attr]
        try:
            value, end = decoder.raw_decode(text, begin)
        except (ValueError, RecursionError):
            return None
        line += text.count("\n", place, begin)
        found.append((line, value))
        line += text.count("\n", begin, end)
        place = end
    return found

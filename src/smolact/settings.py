"""Metadata of settings dataclasses: help text, names of flags, ranges, and other tools' settings that are refused.

`smolact.parsing` reads the metadata; the dataclasses are independent of the command line.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from smolact.errors import ConfigError

DOC = "help"
FLAG = "flag"
ALIASES = "aliases"
REST = "rest"
WHEN_NEEDED = "when needed"
OWN = "own"
RANGE = "range"
INTERNAL = "internal"

RestClass = Callable[[Mapping[str, Any]], type | None]
"""From a section's other settings to the dataclass of its further fields; None while unknown."""


def is_off(value: Any) -> bool:
    """Whether a value is null or false."""
    return value is None or value is False


class Unsupported(NamedTuple):
    """Another tool's setting that has no effect here: it is accepted, in a file for example, with a harmless value only.

    A command's dataclass lists them in a class variable `UNSUPPORTED`, by dotted name; a section's name stands for all of its settings.
    """

    reason: str
    """The reason of the refusal, and the alternative."""
    is_harmless: Callable[[Any], bool] = is_off
    """Whether a value has no effect."""


def setting(
    default: Any,
    doc: str,
    *,
    flag: str | None = None,
    aliases: tuple[str, ...] = (),
    own: bool = False,
    least: float | None = None,
    most: float | None = None,
) -> Any:
    """Return a dataclass field with a help line.

    Args:
        default: its value, or a callable that makes it (`dict`, `list`, a class).
        doc: one line for `--help`.
        flag: the name of its flag, if that is not the field's.
        aliases: other names of the flag.
        own: smolact's alone: omitted from files for other tools, which refuse unknown names.
        least, most: the range of the number (of a tuple: of each number) that `out_of_range` accepts.
    """
    return _field(default, {DOC: doc, FLAG: flag, ALIASES: aliases, OWN: own, RANGE: (least, most)})


def flag_name(field: dataclasses.Field[Any]) -> str:
    """Return the name of a field's flag."""
    return field.metadata.get(FLAG) or field.name


def internal(default: Any) -> Any:
    """Return a dataclass field that is no setting: it has no flag, and is in no file."""
    return _field(default, {INTERNAL: True})


def _field(default: Any, metadata: Mapping[str, Any]) -> Any:
    return (
        dataclasses.field(default_factory=default, metadata=metadata)
        if callable(default)
        else dataclasses.field(default=default, metadata=metadata)
    )


def open_section(fields_of: RestClass, *, when_needed: bool = False) -> Any:
    """Return a `dict` field for all further settings of its section, typed by the dataclass that `fields_of` returns.

    Args:
        when_needed: call `fields_of` only if there are further settings; otherwise its errors are raised without them, too.
    """
    return dataclasses.field(default_factory=dict, metadata={REST: fields_of, WHEN_NEEDED: when_needed})


def at_least(name: str, value: int, least: int) -> None:
    """Raise a `ConfigError` if the setting `name` is below its minimum."""
    if value < least:
        raise ConfigError(f"--{name}={value} is too small: it must be {least} or more.")


def out_of_range(config: Any) -> str | None:
    """Describe a dataclass's first setting that is no number or out of range; None without one."""
    for field in dataclasses.fields(config):
        least, most = field.metadata.get(RANGE, (None, None))
        value = getattr(config, field.name)
        if (least is None and most is None) or value is None:
            continue
        numbers = value if isinstance(value, (tuple, list)) else (value,)
        for number in numbers:
            is_int = isinstance(field.default, int) and not isinstance(field.default, bool)
            is_number = isinstance(number, int if is_int else (int, float)) and not isinstance(number, bool)
            if (
                not is_number
                or (isinstance(number, float) and not math.isfinite(number))
                or (least is not None and number < least)
                or (most is not None and number > most)
            ):
                expected = (
                    f"at least {least:g}"
                    if most is None
                    else f"at most {most:g}"
                    if least is None
                    else f"{least:g} to {most:g}"
                )
                kind = "a whole number" if is_int else "a finite number"
                return f"{field.name}={value}: expected {kind}, {expected}."
    return None

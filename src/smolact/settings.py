"""Metadata of settings dataclasses for the command line: help text, aliases, refused values and ranges.

`smolact.cli.parsing` reads the metadata; the dataclasses are independent of the command line.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

DOC = "help"
ALIASES = "aliases"
REFUSED = "refused"
REST = "rest"
OWN = "own"
RANGE = "range"

RestClass = Callable[[Mapping[str, Any]], type | None]
"""From a section's other settings to the dataclass of its further fields; None while unknown."""


def setting(
    default: Any,
    doc: str,
    *,
    aliases: tuple[str, ...] = (),
    own: bool = False,
    least: float | None = None,
    most: float | None = None,
) -> Any:
    """Return a dataclass field with a help line.

    Args:
        default: its value, or a callable that makes it (`dict`, `list`, a class).
        doc: one line for `--help`.
        aliases: other names.
        own: smolact's alone: omitted from files for other tools, which refuse unknown names.
        least, most: the range of the number (of a tuple: of each number) that `out_of_range` accepts.
    """
    metadata = {DOC: doc, ALIASES: aliases, OWN: own, RANGE: (least, most)}
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def unsupported(default: Any, reason: str, *, harmless: Callable[[Any], bool] | None = None) -> Any:
    """Return a field for another tool's setting that has no effect here: any value but a harmless one is an error.

    Args:
        default: the value without effect.
        reason: the reason of the refusal, and the alternative.
        harmless: further values without effect.
    """
    metadata = {REFUSED: (reason, harmless or (lambda value: bool(value == default)))}
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def open_section(fields_of: RestClass) -> Any:
    """Return a `dict` field for all further settings of its section, typed by the dataclass that `fields_of` returns."""
    return dataclasses.field(default_factory=dict, metadata={REST: fields_of})


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

"""How a dataclass describes its settings to the command line: one line of help, other names, what is refused.

`smolact.cli.parsing` reads these marks; the dataclasses that carry them know nothing of the command line.
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
"""From a section's other settings to the dataclass whose fields it takes as well; None while it can't be told."""


def setting(
    default: Any,
    doc: str,
    *,
    aliases: tuple[str, ...] = (),
    own: bool = False,
    least: float | None = None,
    most: float | None = None,
) -> Any:
    """A dataclass field with its help line.

    Args:
        default: its value, or a callable that makes it (`dict`, `list`, a class).
        doc: one line for `--help`.
        aliases: other names.
        own: ours alone: it is kept out of files that other tools read, which refuse names that they do not know.
        least, most: the smallest and the largest number (of a tuple: each number) that `out_of_range` lets pass.
    """
    metadata = {DOC: doc, ALIASES: aliases, OWN: own, RANGE: (least, most)}
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def unsupported(default: Any, reason: str, *, harmless: Callable[[Any], bool] | None = None) -> Any:
    """A setting of other tools that does nothing here: it parses, and any value but a harmless one is an error.

    Args:
        default: the value that asks for nothing.
        reason: why it is refused, and what to do in its place.
        harmless: further values that ask for nothing.
    """
    metadata = {REFUSED: (reason, harmless or (lambda value: bool(value == default)))}
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def open_section(fields_of: RestClass) -> Any:
    """A `dict` field that takes every further setting of its section, typed by the dataclass that `fields_of` names."""
    return dataclasses.field(default_factory=dict, metadata={REST: fields_of})


def out_of_range(config: Any) -> str | None:
    """What is wrong with the first setting of a dataclass that is no number, or outside its range; None if none is."""
    for item in dataclasses.fields(config):
        least, most = item.metadata.get(RANGE, (None, None))
        value = getattr(config, item.name)
        if (least is None and most is None) or value is None:
            continue
        numbers = value if isinstance(value, (tuple, list)) else (value,)
        for number in numbers:
            is_whole = isinstance(item.default, int) and not isinstance(item.default, bool)
            is_number = isinstance(number, int if is_whole else (int, float)) and not isinstance(number, bool)
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
                kind = "a whole number" if is_whole else "a finite number"
                return f"{item.name}={value}: expected {kind}, {expected}."
    return None

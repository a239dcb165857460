"""How a dataclass describes its settings to the command line: one line of help, other names, what is refused.

`smolact.cli.parsing` reads these marks; the dataclasses that carry them know nothing of the command line.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

DOC = "help"
ALIASES = "aliases"
REFUSED = "refused"
REST = "rest"
OWN = "own"

RestClass = Callable[[Mapping[str, Any]], type | None]
"""From a section's other settings to the dataclass whose fields it takes as well; None while it can't be told."""


def setting(default: Any, doc: str, *, aliases: tuple[str, ...] = (), own: bool = False) -> Any:
    """A dataclass field with its help line.

    Args:
        default: its value, or a callable that makes it (`dict`, `list`, a class).
        doc: one line for `--help`.
        aliases: other names.
        own: ours alone: it is kept out of files that other tools read, which refuse names that they do not know.
    """
    metadata = {DOC: doc, ALIASES: aliases, OWN: own}
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def refused(default: Any, reason: str, *, harmless: Callable[[Any], bool] | None = None) -> Any:
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


def rest(fields_of: RestClass) -> Any:
    """A `dict` field that takes every further setting of its section, typed by the dataclass that `fields_of` names."""
    return dataclasses.field(default_factory=dict, metadata={REST: fields_of})

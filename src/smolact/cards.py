"""Model and dataset cards for the Hub: front matter, tables, and the mark of unedited cards."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

CARD = "README.md"
MAX_TASKS = 20
"""Maximum number of instructions in a card."""

Row = tuple[str, "str | None"]
"""A name and its value; None if unknown."""

_MARK = re.compile(r"\n<!-- smolact ([0-9a-f]{16}) -->\s*\Z")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def front_matter(values: Mapping[str, Any]) -> str:
    """Return a card's YAML front matter, without empty values."""
    filled = {name: value for name, value in values.items() if value}
    return f"---\n{yaml.safe_dump(filled, sort_keys=False, allow_unicode=True, width=1000)}---"


def table(rows: Sequence[Row]) -> str:
    """Return a table of two columns, without rows that have no value."""
    lines = [f"| {name} | {cell(value)} |" for name, value in rows if value]
    return "\n".join(["| | |", "|---|---|", *lines]) if lines else ""


def cell(text: str) -> str:
    """Escape a text for a table cell."""
    return text.replace("|", "\\|").replace("\n", " ")


def tasks(instructions: Sequence[str]) -> str:
    """Return a list of the first instructions; empty without any."""
    if not instructions:
        return ""
    more = len(instructions) - MAX_TASKS
    lines = [f"- {task}" for task in instructions[:MAX_TASKS]] + (
        [f"- … and {more} more"] if more > 0 else []
    )
    return "Instructions:\n\n" + "\n".join(lines)


def hub_id(name: object) -> str | None:
    """Return `name` if it may be a Hub id; an existing path is none."""
    return name if isinstance(name, str) and _HUB_ID.fullmatch(name) and not Path(name).exists() else None


def signed(text: str) -> str:
    """Return a card with a mark that identifies it until it is edited."""
    return f"{text}\n<!-- smolact {_digest(text)} -->\n"


def is_as_written(text: str) -> bool:
    """Whether a card is unedited since smolact wrote it."""
    mark = _MARK.search(text)
    return mark is not None and mark.group(1) == _digest(text[: mark.start()])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]

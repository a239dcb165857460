"""Cards, the pages by which the Hub shows what is published: their head, their tables, and the mark by which ours are known."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

CARD = "README.md"
MAX_TASKS = 20
"""Instructions that a card lists."""

Row = tuple[str, "str | None"]
"""A name, and what it is; None where it is not known."""

_MARK = re.compile(r"\n<!-- smolact ([0-9a-f]{16}) -->\s*\Z")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def front_matter(values: Mapping[str, Any]) -> str:
    """The head of a card in YAML, between its lines; what is empty is left out."""
    kept = {name: value for name, value in values.items() if value}
    return f"---\n{yaml.safe_dump(kept, sort_keys=False, allow_unicode=True, width=1000)}---"


def table(rows: Sequence[Row]) -> str:
    """A table of two columns; rows without a value are left out."""
    lines = [f"| {name} | {cell(value)} |" for name, value in rows if value]
    return "\n".join(["| | |", "|---|---|", *lines]) if lines else ""


def cell(text: str) -> str:
    """A text as it may stand in a table."""
    return text.replace("|", "\\|").replace("\n", " ")


def tasks(instructions: Sequence[str]) -> str:
    """A list of instructions, the first of them; nothing if there are none."""
    if not instructions:
        return ""
    more = len(instructions) - MAX_TASKS
    lines = [f"- {one}" for one in instructions[:MAX_TASKS]] + ([f"- … and {more} more"] if more > 0 else [])
    return "Instructions:\n\n" + "\n".join(lines)


def hub_id(name: object) -> str | None:
    """`name` if it may be an id on the Hub: what is a path here is none."""
    return name if isinstance(name, str) and _HUB_ID.fullmatch(name) and not Path(name).exists() else None


def signed(text: str) -> str:
    """A card with a mark by which it is known again, as long as nobody has changed it."""
    return f"{text}\n<!-- smolact {_digest(text)} -->\n"


def is_as_written(text: str) -> bool:
    """Whether a card is as we wrote it; one that somebody has worked on is theirs."""
    mark = _MARK.search(text)
    return mark is not None and mark.group(1) == _digest(text[: mark.start()])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]

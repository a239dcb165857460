"""Model and dataset cards for the Hub: front matter, text, and the mark of unedited cards."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from smolact.hub import REPO_ID
from smolact.pages import render

CARD = "README.md"
_MARK = re.compile(r"\n<!-- smolact ([0-9a-f]{16}) -->\s*\Z")


def hub_id(name: object) -> str | None:
    """Return `name` if it may be a Hub id; an existing path is none."""
    return name if isinstance(name, str) and REPO_ID.fullmatch(name) and not Path(name).exists() else None


def card(template: str, front: Mapping[str, Any], **values: Any) -> str:
    """Return a card, with a mark that identifies it until it is edited.

    Args:
        template: its template, as of `pages.render`; it may leave several empty lines between sections.
        front: the front matter; empty values are left out.
    """
    filled = {name: value for name, value in front.items() if value}
    head = yaml.safe_dump(filled, sort_keys=False, allow_unicode=True, width=1000)
    body = re.sub(r"\n{3,}", "\n\n", render(template, **values)).strip()
    text = f"---\n{head}---\n\n{body}\n"
    return f"{text}\n<!-- smolact {_digest(text)} -->\n"


def is_unedited(text: str) -> bool:
    """Whether a card is unedited since smolact wrote it."""
    mark = _MARK.search(text)
    return mark is not None and mark.group(1) == _digest(text[: mark.start()])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]

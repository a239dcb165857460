"""Tables that scripts write into pages, between `<!-- NAME -->` and `<!-- /NAME -->`; and the look of the plots."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[2] / "docs"
IMAGES = DOCS / "images/learn"

GREY = "#8a8f98"  # stands out from white and from dark
TEAL, ORANGE, PURPLE, BLUE = "#00a08a", "#f08020", "#9a6ae0", "#3d8fe0"
STYLE: dict[str, Any] = {
    "axes.edgecolor": GREY,
    "axes.labelcolor": GREY,
    "axes.prop_cycle": f"cycler('color', ['{TEAL}', '{ORANGE}', '{PURPLE}', '{BLUE}'])",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": GREY,
    "axes.titlesize": 10,
    "figure.constrained_layout.use": True,
    "figure.dpi": 130,
    "font.size": 9,
    "legend.frameon": False,
    "legend.labelcolor": GREY,
    "savefig.transparent": True,
    "text.color": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
}


def table(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first row is its head."""
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(row)} |" for row in lines)


def put(page: str, tables: Mapping[str, str]) -> None:
    """Write each table where the page has a place of that name."""
    path = DOCS / page
    text = path.read_text(encoding="utf-8")
    for name, made in tables.items():
        text, places = re.subn(
            rf"(<!-- {re.escape(name)} -->\n).*?(<!-- /{re.escape(name)} -->)",
            lambda match, made=made: f"{match[1]}\n{made}\n\n{match[2]}",
            text,
            flags=re.DOTALL,
        )
        if places != 1:
            raise SystemExit(f"{path} has {places} places for the table '{name}', expected one.")
    path.write_text(text, encoding="utf-8")

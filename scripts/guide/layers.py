"""Draw docs/images/layers.svg, the packages by layer: python scripts/guide/layers.py."""

from __future__ import annotations

import sys
from html import escape
from pathlib import Path

ROOT = Path(__file__).parents[2]
WIDTH, ROW, GAP, MARGIN = 880, 44, 10, 14


def layers() -> list[list[str]]:
    """The packages of each layer, the uppermost first, as tests/test_layers.py checks them."""
    sys.path.insert(0, str(ROOT))
    from tests.test_layers import LAYERS

    rows: list[list[str]] = [[] for _ in range(max(LAYERS.values()) + 1)]
    for name, layer in LAYERS.items():
        if not name.startswith("__"):
            rows[-1 - layer].append(name)
    return rows


def picture() -> str:
    """The SVG."""
    parts = []
    for row, names in enumerate(layers()):
        width = (WIDTH - 2 * MARGIN - GAP * (len(names) - 1)) / len(names)
        small = len(names) > 8
        for column, name in enumerate(names):
            x, y = MARGIN + column * (width + GAP), MARGIN + row * (ROW + GAP)
            middle = f'x="{x + width / 2:.1f}" text-anchor="middle"'
            parts.append(f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{ROW}" rx="6"/>')
            size = ' style="font-size:10px"' if small else ""
            parts.append(f'<text {middle} y="{y + 27}"{size}>{escape(name)}</text>')
    height = 2 * MARGIN + (len(layers()) * (ROW + GAP)) - GAP
    style = "rect{fill:#eef2f7;stroke:#8fa3bf}text{font:14px sans-serif;fill:#1c2733}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="Packages of smolact by layer"><style>{style}</style>{"".join(parts)}</svg>\n'
    )


if __name__ == "__main__":
    (ROOT / "docs" / "images" / "layers.svg").write_text(picture(), encoding="utf-8")

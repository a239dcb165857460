"""Self-contained HTML pages with one style, light and dark, for narrow and wide screens."""

from __future__ import annotations

import platform
import shlex
import sys
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping
from html import escape
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("smolact", "torch", "accelerate", "numpy", "av")


def document(title: str, parts: Iterable[str], head: str = "") -> str:
    """Return a complete page from a plain-text `title` and HTML `parts` (empty ones are skipped); `head` ends its head."""
    body = "\n".join(part for part in parts if part)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n{head}</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def header(title: str, below: str) -> str:
    """Return the page's header from plain text."""
    return f"<header><h1>{escape(title)}</h1><p>{escape(below)}</p></header>"


def tiles(values: Mapping[str, str]) -> str:
    """Return large numbers: name to text."""
    items = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>" for name, text in values.items()
    )
    return f"<dl>{items}</dl>" if items else ""


def table(title: str, rows: Mapping[str, str], folded: bool = False) -> str:
    """Return a table under a heading; `folded` hides it until the heading is clicked."""
    if not rows:
        return ""
    cells = "".join(f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>" for name, text in rows.items())
    body = f"<table class=pairs>{cells}</table>"
    if folded:
        return f"<details><summary><h2>{escape(title)}</h2></summary>{body}</details>"
    return f"<h2>{escape(title)}</h2>{body}"


def command_lines(*lines: str | None) -> str:
    """Return commands to copy."""
    return "".join(f"<pre>{escape(line)}</pre>" for line in lines if line)


def embedded(data: bytes, kind: str) -> str:
    """Return a file as a data URI; `kind` is its media type, such as `image/png`."""
    return f"data:{kind};base64,{b64encode(data).decode('ascii')}"


def flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield nested settings by dotted name, as in flags."""
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", str(value)


def how_it_ran() -> dict[str, str]:
    """Return this process's command and package versions, without host or user names."""
    versions = [f"Python {platform.python_version()}", *filter(None, map(_version, PACKAGES))]
    command = [Path(sys.argv[0]).name, *sys.argv[1:]]
    return {"command": shlex.join(command), "versions": ", ".join(versions)}


def _version(package: str) -> str | None:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return None


STYLE = """
:root { color-scheme: light dark; --page: #fff; --card: #f6f7f9; --text: #16191f; --line: #2f6fde; --pale: #a9c4f5;
  --second: #d9622b; --ink: #555c68; --faint: #dfe3e8 }
@media (prefers-color-scheme: dark) { :root { --page: #14171c; --card: #1c2027; --text: #e8eaee; --line: #7aa7ff;
  --pale: #35507f; --second: #ff9a62; --ink: #a4acb9; --faint: #313843 } }
* { box-sizing: border-box }
body { margin: 0; background: var(--page); color: var(--text); font: 15px/1.5 system-ui, sans-serif }
main { max-width: 1120px; margin: 0 auto; padding: 24px 16px 48px }
h1 { margin: 0; font-size: 26px; overflow-wrap: anywhere }
h2 { font-size: 18px; margin: 32px 0 8px }
header p { margin: 2px 0 20px; color: var(--ink) }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin: 0 0 20px }
dl div, figure, pre, table { background: var(--card); border-radius: 10px }
dl div { padding: 10px 14px }
dt { color: var(--ink); font-size: 13px }
dd { margin: 0; font-size: 20px; font-weight: 600 }
pre { padding: 12px 14px; margin: 0 0 20px; white-space: pre-wrap; overflow-wrap: anywhere; font-size: 13px }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 340px), 1fr)); gap: 12px }
figure { margin: 0; padding: 12px 14px }
figcaption { font-size: 14px; font-weight: 600; margin-bottom: 4px }
svg, video { display: block; width: 100%; height: auto }
svg text { fill: var(--ink); font-family: inherit }
video { border-radius: 6px; margin-bottom: 6px; background: #000 }
table { width: 100%; border-collapse: collapse; font-size: 14px }
.pairs { table-layout: fixed }
th, td { text-align: left; vertical-align: top; padding: 6px 14px; border-top: 1px solid var(--faint);
  overflow-wrap: anywhere }
tr:first-child > * { border-top: 0 }
th { font-weight: 500; color: var(--ink) } .pairs th { width: 34% }
summary { cursor: pointer } summary h2 { display: inline-block }
footer { margin-top: 32px; color: var(--ink); font-size: 13px } a { color: var(--line) }
"""

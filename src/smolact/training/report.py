"""What a run leaves to look at: `curves.png`, and `report.html`, a page that needs nothing but itself.

Both are made from `metrics.jsonl` and the settings alone, so that they can be made again at any time.
"""

from __future__ import annotations

import math
import platform
import shlex
import sys
from collections.abc import Iterator, Mapping
from html import escape
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from urllib.parse import quote

from smolact import durable
from smolact.training.curves import (
    HIGH,
    LOW,
    SUCCESS,
    VALIDATION,
    Metrics,
    drawing,
    panels,
    picture,
    read_metrics,
)

CURVES, REPORT, VIDEOS = "curves.png", "report.html", "videos"
MOST_VIDEOS = 6
PACKAGES = ("smolact", "torch", "accelerate", "numpy", "av")


def write_report(run: Path, settings: Mapping[str, Any], facts: Mapping[str, str] | None = None) -> Path:
    """Write `curves.png` and `report.html` into a run's folder, in place of earlier ones.

    Args:
        run: holds `metrics.jsonl`, and may hold `videos/NAME/*.mp4`.
        settings: those of the run, as `train_config.json` holds them.
        facts: what else to say, name to text: the dataset, the device, the command, …

    Returns:
        the page.

    Raises:
        WriteError: the disk is full or refused; what was there is as it was.
    """
    metrics = read_metrics(run)
    durable.write_bytes(run / CURVES, picture(metrics))
    durable.write_text(run / REPORT, page(run, settings, facts or {}, metrics))
    return run / REPORT


def how_it_ran() -> dict[str, str]:
    """The command of this process and the versions that it runs on; no host or user names."""
    versions = [f"Python {platform.python_version()}", *filter(None, map(_version, PACKAGES))]
    command = [Path(sys.argv[0]).name, *sys.argv[1:]]
    return {"command": shlex.join(command), "versions": ", ".join(versions)}


def _version(package: str) -> str | None:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return None


def page(run: Path, settings: Mapping[str, Any], facts: Mapping[str, str], metrics: Metrics) -> str:
    """The page, as text."""
    name = escape(str(settings.get("job_name") or run.resolve().name))
    rest = dict(facts)
    command = rest.pop("command", None)
    parts = [
        f"<header><h1>{name}</h1><p>{escape(_how_far(settings, metrics))}</p></header>",
        _tiles(figures(metrics)),
        *(f"<pre>{escape(line)}</pre>" for line in [command] if line),
        _curves(metrics),
        _films(run),
        _table("The run", rest),
        _table("Settings", dict(flat(settings)), folded=True),
        f'<footer>Made from <a href="metrics.jsonl">metrics.jsonl</a>; the curves alone: '
        f'<a href="{CURVES}">{CURVES}</a>.</footer>',
    ]
    body = "\n".join(part for part in parts if part)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{name}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _how_far(settings: Mapping[str, Any], metrics: Metrics) -> str:
    step = max((int(series.steps[-1]) for series in metrics.values()), default=0)
    steps = settings.get("steps")
    if not isinstance(steps, int):
        return f"{step:,} steps"
    return f"Complete: {step:,} steps" if step >= steps else f"Stopped after {step:,} of {steps:,} steps"


def figures(metrics: Metrics) -> dict[str, str]:
    """The numbers that the run comes to, name to text; those that were measured."""
    found: dict[str, str] = {}
    if (loss := _last(metrics, "loss")) is not None:
        found["loss, last"] = f"{loss:.4g}"
    for name in VALIDATION:
        if name in metrics and len(values := metrics[name].finite().values):
            found["validation loss, best"] = f"{values.min():.4g}"
    if (rate := _last(metrics, SUCCESS)) is not None:
        low, high = _last(metrics, LOW), _last(metrics, HIGH)
        between = "" if low is None or high is None else f" (95%: {low:.0%} to {high:.0%})"
        found[f"success, last{between}"] = f"{rate:.0%}"
    if "samples_per_second" in metrics and len(speeds := metrics["samples_per_second"].finite().values):
        found["samples a second, median"] = f"{sorted(speeds)[len(speeds) // 2]:.4g}"
    if "data_wait" in metrics and len(waits := metrics["data_wait"].finite().values):
        found["waiting for data"] = f"{math.fsum(waits) / len(waits):.0%}"
    if bad := _last(metrics, "bad_steps"):
        found["steps that were not finite"] = f"{bad:.0f}"
    return found


def _last(metrics: Metrics, name: str) -> float | None:
    return metrics[name].last if name in metrics else None


def flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings by their dotted names, as flags have them."""
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", str(value)


def _tiles(shown: Mapping[str, str]) -> str:
    tiles = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>" for name, text in shown.items()
    )
    return f"<dl>{tiles}</dl>" if tiles else ""


def _curves(metrics: Metrics) -> str:
    drawn = [
        f"<figure><figcaption>{escape(panel.title)}</figcaption>{drawing(panel, metrics, f'p{index}')}</figure>"
        for index, panel in enumerate(panels(metrics))
    ]
    return f"<section class=grid>{''.join(drawn)}</section>" if drawn else "<p>Nothing was measured.</p>"


def _films(run: Path) -> str:
    """The newest evaluation's videos, by their place beside the page."""
    folders = sorted({path.parent for path in (run / VIDEOS).glob("**/*.mp4")})
    if not folders:
        return ""
    films = sorted(folders[-1].glob("*.mp4"))[:MOST_VIDEOS]
    shown = "".join(
        f'<figure><video controls muted loop playsinline preload="metadata" src="{quote(str(film.relative_to(run)))}">'
        f"</video><figcaption>{escape(film.stem.replace('_', ' '))}</figcaption></figure>"
        for film in films
    )
    return f"<h2>Last evaluation</h2><section class=grid>{shown}</section>"


def _table(title: str, rows: Mapping[str, str], folded: bool = False) -> str:
    if not rows:
        return ""
    cells = "".join(f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>" for name, text in rows.items())
    table = f"<table>{cells}</table>"
    if folded:
        return f"<details><summary><h2>{escape(title)}</h2></summary>{table}</details>"
    return f"<h2>{escape(title)}</h2>{table}"


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
table { width: 100%; border-collapse: collapse; font-size: 14px; table-layout: fixed }
th, td { text-align: left; vertical-align: top; padding: 6px 14px; border-top: 1px solid var(--faint);
  overflow-wrap: anywhere }
tr:first-child > * { border-top: 0 }
th { font-weight: 500; color: var(--ink); width: 34% }
summary { cursor: pointer } summary h2 { display: inline-block }
footer { margin-top: 32px; color: var(--ink); font-size: 13px } a { color: var(--line) }
"""

"""The report of a run: `curves.png`, and `report.html`, a self-contained page.

Both are made from `metrics.jsonl` and the settings alone, so that they can be made again at any time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smolact import durable
from smolact.pages import flat, render
from smolact.training.curves import (
    HIGH,
    LOW,
    SUCCESS,
    VALIDATION,
    Metrics,
    drawings,
    picture,
    read_metrics,
)

CURVES, REPORT, VIDEOS = "curves.png", "report.html", "videos"
MAX_VIDEOS = 6


def write_report(run: Path, settings: Mapping[str, Any], facts: Mapping[str, str] | None = None) -> Path:
    """Write `curves.png` and `report.html` into a run's folder, in place of earlier ones.

    Args:
        run: the folder, with `metrics.jsonl` and perhaps `videos/NAME/*.mp4`.
        settings: the run's settings, as in `train_config.json`.
        facts: further facts, name to text: the dataset, the device, the command, …

    Returns:
        the page's path.

    Raises:
        WriteError: the disk is full or refused; earlier files are unchanged.
    """
    metrics = read_metrics(run)
    durable.write_bytes(run / CURVES, picture(metrics))
    durable.write_text(run / REPORT, page(run, settings, facts or {}, metrics))
    return run / REPORT


def page(run: Path, settings: Mapping[str, Any], facts: Mapping[str, str], metrics: Metrics) -> str:
    """Return the page as text, with the videos of the newest evaluation by their paths relative to the page."""
    newest = max((path.parent for path in (run / VIDEOS).glob("**/*.mp4")), default=None)
    videos = [] if newest is None else sorted(newest.glob("*.mp4"))[:MAX_VIDEOS]
    return render(
        "run.html.jinja",
        title=str(settings.get("job_name") or run.resolve().name),
        subtitle=_how_far(settings, metrics),
        figures=figures(metrics),
        command=facts.get("command"),
        drawings=drawings(metrics),
        videos=[video.relative_to(run) for video in videos],
        facts={name: text for name, text in facts.items() if name != "command"},
        settings=dict(flat(settings)),
    )


def _how_far(settings: Mapping[str, Any], metrics: Metrics) -> str:
    step = max((int(series.steps[-1]) for series in metrics.values()), default=0)
    steps = settings.get("steps")
    if not isinstance(steps, int):
        return f"{step:,} steps"
    return f"Complete: {step:,} steps" if step >= steps else f"Stopped after {step:,} of {steps:,} steps"


def figures(metrics: Metrics) -> dict[str, str]:
    """Return the main numbers of the run that were measured, name to text."""
    numbers: dict[str, str] = {}
    if (loss := _last(metrics, "loss")) is not None:
        numbers["loss, last"] = f"{loss:.4g}"
    for name in VALIDATION:
        if name in metrics and len(values := metrics[name].finite().values):
            numbers["validation loss, best"] = f"{values.min():.4g}"
    if (rate := _last(metrics, SUCCESS)) is not None:
        low, high = _last(metrics, LOW), _last(metrics, HIGH)
        between = "" if low is None or high is None else f" (95%: {low:.0%} to {high:.0%})"
        numbers[f"success, last{between}"] = f"{rate:.0%}"
    if "samples_per_second" in metrics and len(speeds := metrics["samples_per_second"].finite().values):
        numbers["samples a second, median"] = f"{sorted(speeds)[len(speeds) // 2]:.4g}"
    if "data_wait" in metrics and len(waits := metrics["data_wait"].finite().values):
        numbers["waiting for data"] = f"{math.fsum(waits) / len(waits):.0%}"
    if bad := _last(metrics, "bad_steps"):
        numbers["steps that were not finite"] = f"{bad:.0f}"
    return numbers


def _last(metrics: Metrics, name: str) -> float | None:
    return metrics[name].last if name in metrics else None


def curves_section(metrics: Metrics) -> str:
    """Return the curves as HTML, for another page."""
    return render("curves.html.jinja", drawings=drawings(metrics))

"""The report of a run: `curves.png`, and `report.html`, a self-contained page.

Both are made from `metrics.jsonl` and the settings alone, so that they can be made again at any time.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smolact import durable
from smolact.pages import flat_settings, render
from smolact.training.curves import drawings, picture
from smolact.training.metrics import HIGH, LOW, SUCCESS, VALIDATION, Metrics, read_metrics

CURVES, REPORT, VIDEOS = "curves.png", "report.html", "videos"
MAX_VIDEOS = 6


def write_report(run: Path, settings: Mapping[str, Any], facts: Mapping[str, str] | None = None) -> Path:
    """Write `curves.png` and `report.html` into a run's folder, in place of earlier ones.

    Args:
        run: the folder, with `metrics.jsonl` and perhaps `videos/NAME/*.mp4`.
        settings: the run's settings, as in `train_config.json`.
        facts: further facts, name to text: the dataset, the device, the command, …

    Raises:
        WriteError: the disk is full or refused; earlier files are unchanged.
    """
    metrics = read_metrics(run)
    durable.write_bytes(run / CURVES, picture(metrics))
    durable.write_text(run / REPORT, page(run, settings, facts or {}, metrics))
    return run / REPORT


def page(run: Path, settings: Mapping[str, Any], facts: Mapping[str, str], metrics: Metrics) -> str:
    """Return the page as text; it links to the videos of the newest evaluation by their relative paths."""
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
        settings=dict(flat_settings(settings)),
    )


def _how_far(settings: Mapping[str, Any], metrics: Metrics) -> str:
    step = max((int(series.steps[-1]) for series in metrics.values()), default=0)
    steps = settings.get("steps")
    if not isinstance(steps, int):
        return f"{step:,} steps"
    return f"Complete: {step:,} steps" if step >= steps else f"Stopped after {step:,} of {steps:,} steps"


def figures(metrics: Metrics) -> dict[str, str]:
    """Return the main numbers of the run that were measured, name to text."""
    finite = {name: series.finite().values for name, series in metrics.items()}
    values = {name: value for name, value in finite.items() if len(value)}
    numbers: dict[str, str] = {}
    if "loss" in values:
        numbers["loss, last"] = f"{values['loss'][-1]:.4g}"
    for name in VALIDATION:
        if name in values:
            numbers["validation loss, best"] = f"{values[name].min():.4g}"
    if SUCCESS in values:
        has_interval = LOW in values and HIGH in values
        between = f" (95%: {values[LOW][-1]:.0%} to {values[HIGH][-1]:.0%})" if has_interval else ""
        numbers[f"success, last{between}"] = f"{values[SUCCESS][-1]:.0%}"
    if "samples_per_second" in values:
        speeds = sorted(values["samples_per_second"])
        numbers["samples a second, median"] = f"{speeds[len(speeds) // 2]:.4g}"
    if "data_wait" in values:
        numbers["waiting for data"] = f"{values['data_wait'].mean():.0%}"
    if "bad_steps" in values and values["bad_steps"][-1]:
        numbers["steps that were not finite"] = f"{values['bad_steps'][-1]:.0f}"
    return numbers


def curves_section(metrics: Metrics) -> str:
    """Return the curves as HTML, for another page."""
    return render("curves.html.jinja", drawings=drawings(metrics))

"""Plots of a run's metrics: one PNG with all of them, and SVGs for a page."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter

from smolact.training.metrics import HIGH, LOW, SUCCESS, VALIDATION, Metrics, Series, downsample, smoothed

LINE, PALE, SECOND, INK, FAINT = "#2f6fde", "#a9c4f5", "#d9622b", "#444a55", "#d9dde3"
"""Colours of the plots on white; the HTML page replaces them with its own, light or dark."""
COLOUR_NAMES = {LINE: "line", PALE: "pale", SECOND: "second", INK: "ink", FAINT: "faint"}


Draw = Callable[[Axes, Metrics], None]


@dataclass(frozen=True)
class Panel:
    """A plot: its title, the metrics that it needs, and its drawing function."""

    title: str
    needs: tuple[str, ...]
    draw: Draw


def panels(metrics: Metrics) -> list[Panel]:
    """Return the plots with at least one finite value."""
    return [
        panel
        for panel in PANELS
        if any(name in metrics and metrics[name].last is not None for name in panel.needs)
    ]


def _loss(axes: Axes, metrics: Metrics) -> None:
    drawn = []
    if "loss" in metrics:
        drawn.append(_raw_and_smooth(axes, metrics["loss"], "training"))
    drawn += [
        _plot(axes, metrics[name].finite(), SECOND, "validation", marker="o")
        for name in VALIDATION
        if name in metrics
    ]
    _log_if_wide(axes, drawn)
    if len(axes.get_lines()) > 1:
        axes.legend(frameon=False, labelcolor=INK, fontsize=8)


def _gradient(axes: Axes, metrics: Metrics) -> None:
    _log_if_wide(axes, [_raw_and_smooth(axes, metrics["grad_norm"], "gradient norm")])


def _rate(axes: Axes, metrics: Metrics) -> None:
    rates = metrics["lr"].finite()
    _plot(axes, rates, LINE)
    axes.set_ylim(0, 1.05 * float(rates.values.max()) or 1.0)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))


def _speed(axes: Axes, metrics: Metrics) -> None:
    _raw_and_smooth(axes, metrics["samples_per_second"], "samples/s")
    axes.set_ylim(bottom=0)


def _wait(axes: Axes, metrics: Metrics) -> None:
    _raw_and_smooth(axes, metrics["data_wait"], "waiting")
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def _success(axes: Axes, metrics: Metrics) -> None:
    rates = metrics[SUCCESS].finite()
    _plot(axes, rates, LINE, marker="o")
    if LOW in metrics and HIGH in metrics:
        low, high = (dict(zip(metrics[key].steps, metrics[key].values, strict=True)) for key in (LOW, HIGH))
        shared = [step for step in rates.steps if step in low and step in high]
        axes.vlines(
            shared,
            [low[step] for step in shared],
            [high[step] for step in shared],
            colors=PALE,
            linewidth=3,
            zorder=1,
        )
    axes.set_ylim(-0.03, 1.03)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


PANELS = (
    Panel("Loss", ("loss", *VALIDATION), _loss),
    Panel("Success in the environment, 95% intervals", (SUCCESS,), _success),
    Panel("Gradient norm", ("grad_norm",), _gradient),
    Panel("Learning rate", ("lr",), _rate),
    Panel("Samples a second", ("samples_per_second",), _speed),
    Panel("Share of time waiting for data", ("data_wait",), _wait),
)


def _raw_and_smooth(axes: Axes, series: Series, label: str) -> Series:
    few = len(series.values) < 10
    raw = downsample(series)
    if few:
        return _plot(axes, raw, LINE, label, marker="o")
    _plot(axes, raw, PALE, None)
    return _plot(axes, Series(raw.steps, smoothed(raw.values)), LINE, label)


def _plot(axes: Axes, series: Series, colour: str, label: str | None = None, marker: str = "") -> Series:
    if len(series.finite().values) == 1:
        marker = "o"  # a line of one point can't be seen
    axes.plot(
        series.steps, series.values, color=colour, label=label, marker=marker, markersize=3.5, linewidth=1.3
    )
    return series


def _log_if_wide(axes: Axes, drawn: Sequence[Series]) -> None:
    """Set a logarithmic scale if values differ by more than a factor of 20."""
    values = np.concatenate([series.finite().values for series in drawn])
    if len(values) and values.min() > 0 and values.max() / values.min() > 20:
        axes.set_yscale("log")


def _style_axes(axes: Axes, metrics: Metrics, title: str | None) -> None:
    """Set the common style, with the same range of steps, so that the panels align."""
    steps = np.concatenate([series.steps for series in metrics.values()])
    first, last = float(steps.min()), float(steps.max())
    margin = 0.02 * (last - first) or 1.0
    axes.set_xlim(first - margin, last + margin)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.minorticks_off()
    axes.set_facecolor("none")
    axes.grid(color=FAINT, linewidth=0.7)
    axes.tick_params(colors=INK, labelsize=9, length=0)
    axes.yaxis.get_offset_text().set(color=INK, fontsize=8)
    axes.spines[:].set_visible(False)
    if title is not None:
        axes.set_title(title, fontsize=10, loc="left", color=INK, pad=12)


def picture(metrics: Metrics) -> bytes:
    """Return all plots as a PNG."""
    chosen = panels(metrics)
    rows = max(1, math.ceil(len(chosen) / 2))
    figure = Figure(figsize=(10, 2.7 * rows), facecolor="white")
    FigureCanvasAgg(figure)
    if not chosen:
        figure.text(0.5, 0.5, "Nothing was measured.", ha="center", color=INK)
    for index, panel in enumerate(chosen):
        axes = figure.add_subplot(rows, 2, index + 1)
        panel.draw(axes, metrics)
        _style_axes(axes, metrics, panel.title)
    # Set by hand: matplotlib's own layouts draw everything twice.
    edge = 0.4 / figure.get_figheight()
    figure.subplots_adjust(left=0.06, right=0.985, bottom=edge, top=1 - edge, wspace=0.16, hspace=0.45)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=120, metadata={"Software": None})
    return file.getvalue()


def drawings(metrics: Metrics) -> dict[str, str]:
    """Return all plots as SVG for a page, title to element."""
    return {panel.title: drawing(panel, metrics, f"p{index}") for index, panel in enumerate(panels(metrics))}


def drawing(panel: Panel, metrics: Metrics, prefix: str) -> str:
    """Return one plot as SVG for the HTML page: without title, at the width of its container, with the page's colours.

    `prefix` makes the ids unique within the page.
    """
    figure = Figure(figsize=(5.2, 2.6), facecolor="none")
    axes = figure.add_subplot()
    panel.draw(axes, metrics)
    _style_axes(axes, metrics, None)
    figure.subplots_adjust(left=0.11, right=0.98, bottom=0.1, top=0.92)
    file = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": prefix}):
        figure.savefig(
            file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    return _for_page(file.getvalue(), prefix, panel.title)


def _for_page(svg: str, prefix: str, title: str) -> str:
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\b(id="|href="#|url\(#)', rf"\1{prefix}-", svg)
    for colour, name in COLOUR_NAMES.items():
        svg = svg.replace(colour, f"var(--{name})")
    view_box = re.search(r'<svg[^>]*(viewBox="[^"]*")[^>]*>', svg)
    assert view_box is not None
    return f'<svg {view_box[1]} role="img" aria-label="{title}">{svg[view_box.end() :].strip()}'

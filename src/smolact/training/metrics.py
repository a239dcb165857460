"""Metrics as curves over steps: read from `metrics.jsonl` (also a damaged one), thinned and smoothed. n is a number of points."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from smolact.training.tracking import METRICS

Floats = NDArray[np.float64]

VALIDATION = ("validation_loss", "eval/validation_loss")
"""Possible names of the validation loss."""
SUCCESS, LOW, HIGH = "eval/success_rate", "eval/success_low", "eval/success_high"
LARGEST_STEP = 10**12
"""A larger step number is corrupt."""
MAX_POINTS = 1000
"""Maximum points of a plotted curve; a longer one is plotted as means."""


@dataclass(frozen=True)
class Series:
    """A metric over steps: both (n,), with increasing steps; values that were not finite are NaN."""

    steps: Floats
    values: Floats

    def finite(self) -> Series:
        """Return the series without NaN."""
        good = np.isfinite(self.values)
        return Series(self.steps[good], self.values[good])

    @property
    def last(self) -> float | None:
        """The last finite value."""
        values = self.finite().values
        return float(values[-1]) if len(values) else None


Metrics = Mapping[str, Series]


def read_metrics(run: Path) -> dict[str, Series]:
    """Return the curves in a run's `metrics.jsonl`, by name; empty if there is no file.

    Where the step decreases, the run was resumed from an earlier checkpoint, and later steps are dropped. Lines that are not
    JSON (a killed run's last) or have no step, and values that are not numbers, are skipped.
    """
    path = run / METRICS
    lines: list[tuple[float, dict[str, float]]] = []
    for text in path.read_text(encoding="utf-8", errors="replace").split("\n") if path.is_file() else ():
        numbers = _parsed(text)
        step = numbers.pop("step", math.nan)
        if not 0 <= step <= LARGEST_STEP:
            continue
        if lines and step < lines[-1][0]:
            lines = [line for line in lines if line[0] < step]
        lines.append((step, numbers))
    curves: defaultdict[str, dict[float, float]] = defaultdict(dict)
    for step, numbers in lines:
        for name, value in numbers.items():
            curves[name][step] = value if math.isfinite(value) else math.nan
    return {name: Series(np.array([*curve]), np.array([*curve.values()])) for name, curve in curves.items()}


def _parsed(text: str) -> dict[str, float]:
    try:
        line = json.loads(text)
    except ValueError:
        return {}
    if not isinstance(line, dict):
        return {}
    return {
        name: float(value)
        for name, value in line.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def smoothed(values: Floats, share: float = 0.01) -> Floats:
    """Return means of values (n,) whose weights halve at a distance of `share` of the points, on both sides: no lag.

    Values that are not finite are skipped. The time grows with n².
    """
    distance = np.abs(np.arange(1 - len(values), len(values)))
    weights = 0.5 ** (distance / max(1.0, share * len(values)))
    good = np.isfinite(values)
    total = np.convolve(np.where(good, values, 0.0), weights, "valid")
    weight = np.convolve(good.astype(np.float64), weights, "valid")
    return total / weight if good.any() else np.full(len(values), math.nan)


def downsample(series: Series, most: int = MAX_POINTS) -> Series:
    """Return means of neighbouring points, at most `most` of them, without values that are not finite."""
    if len(series.steps) <= most:
        return series
    steps = [part.mean() for part in np.array_split(series.steps, most)]
    finite = [part[np.isfinite(part)] for part in np.array_split(series.values, most)]
    return Series(np.array(steps), np.array([part.mean() if len(part) else math.nan for part in finite]))

"""Normalization statistics: running statistics of new data, and their aggregation over episodes.

Vectors have one value per dimension, images one per channel, (3, 1, 1) in [0, 1]. All are exact (of large images: over a grid of
pixels), except running vector quantiles, which come from a histogram, within about 1/2048 of the range.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smolact.datasets.format import QUANTILES
from smolact.types import Statistics

Float = NDArray[np.float64]

BINS = 8192  # of a histogram; fewer for more than MAX_BINS / BINS dimensions, to bound memory
MAX_BINS = 2**20
_SORTED_AT_ONCE = 2**22  # numbers, to bound memory
LARGEST = 1e150  # sums of larger squares would overflow
GRID_SIDE = 150  # grid points per side of images of at least twice this size


def usable_values(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether each number is finite and at most `LARGEST`, an array of the shape of `values`."""
    usable: NDArray[np.bool_] = np.isfinite(values)
    if values.dtype == np.float64:  # smaller dtypes can't exceed it
        usable &= np.abs(values) <= LARGEST
    return usable


class VectorStatistics:
    """Running statistics of vectors; `update` takes (n, *shape) arrays, `result` returns arrays of `shape`.

    The histogram's range doubles towards an outlier and merges bins in pairs, so every value stays in its bin.
    """

    def __init__(self, shape: Sequence[int]) -> None:
        self._shape = tuple(shape)
        self._size = int(np.prod(self._shape))
        self._columns = BINS
        while self._columns > 64 and self._columns * self._size > MAX_BINS:
            self._columns //= 2
        self._count = 0
        self._mean = np.zeros(self._size)
        self._squares = np.zeros(self._size)  # sum of squared distances from the mean
        self._min = np.full(self._size, np.inf)
        self._max = np.full(self._size, -np.inf)
        self._low = np.zeros(self._size)  # the histogram's lower edge
        self._width = np.zeros(self._size)  # of one bin
        self._bins = np.zeros((self._size, self._columns), dtype=np.int64)

    def update(self, values: NDArray[Any]) -> None:
        """Add n vectors, (n, *shape), all finite."""
        rows = np.asarray(values, dtype=np.float64).reshape(len(values), self._size)
        if not len(rows):
            return
        low, high, mean = rows.min(axis=0), rows.max(axis=0), rows.mean(axis=0)
        step, total = mean - self._mean, self._count + len(rows)
        self._squares += np.square(rows - mean).sum(axis=0) + step**2 * self._count * len(rows) / total
        self._mean = self._mean + step * len(rows) / total
        if not self._count:
            self._low = low
            least = 1e-9 * np.maximum(np.abs(low), np.abs(high)).clip(1e-6)  # a constant needs a range too
            self._width = 1.001 * np.maximum(high - low, least) / self._columns
        self._min, self._max = np.minimum(self._min, low), np.maximum(self._max, high)
        self._count += len(rows)
        self._grow()
        column = ((rows - self._low) / self._width).astype(np.int64).clip(0, self._columns - 1)
        flat = column + np.arange(self._size) * self._columns
        self._bins += np.bincount(flat.ravel(), minlength=self._size * self._columns).reshape(
            self._size, self._columns
        )

    def result(self) -> dict[str, NDArray[Any]]:
        """The statistics so far: `min, max, mean, std, q01 … q99` of `shape`, and `count` (1,)."""
        statistics = {
            "min": self._min,
            "max": self._max,
            "mean": self._mean,
            "std": np.sqrt(self._squares / max(self._count, 1)),
        }
        cumulative = self._bins.cumsum(axis=1)
        for name, quantile in QUANTILES.items():
            rank = max(1, int(np.ceil(quantile * self._count)))  # the rank-th smallest value
            column = (cumulative < rank).sum(axis=1)
            middle = self._low + (column + 0.5) * self._width
            statistics[name] = middle.clip(self._min, self._max)
        shaped = {name: value.reshape(self._shape).copy() for name, value in statistics.items()}
        return {**shaped, "count": np.array([self._count], dtype=np.int64)}

    def _grow(self) -> None:
        for column in range(self._size):
            while self._min[column] < self._low[column]:
                self._low[column] -= self._width[column] * self._columns
                self._double(column, upper=True)
            while self._max[column] > self._low[column] + self._width[column] * self._columns:
                self._double(column, upper=False)

    def _double(self, column: int, upper: bool) -> None:
        """Double the range; `upper` puts the old counts into its upper half."""
        merged = self._bins[column].reshape(-1, 2).sum(axis=1)
        empty = np.zeros_like(merged)
        self._bins[column] = np.concatenate([empty, merged] if upper else [merged, empty])
        self._width[column] *= 2


class ImageStatistics:
    """Running statistics per channel of 8-bit images, from exact value counts."""

    def __init__(self, channels: int = 3) -> None:
        self._counts = np.zeros((channels, 256), dtype=np.int64)
        self._images = 0

    def update(self, image: NDArray[np.uint8]) -> None:
        """Add an image, (H, W, C) uint8, or the grid of a large one."""
        step = grid_step(image.shape[0], image.shape[1])
        points = image[::step, ::step]
        for channel, counts in enumerate(self._counts):
            counts += np.bincount(points[..., channel].ravel(), minlength=256)
        self._images += 1

    def add(self, other: ImageStatistics) -> None:
        """Add the counts of `other`."""
        self._counts += other._counts
        self._images += other._images

    def to_json(self) -> dict[str, Any]:
        """The counts, for `from_json`."""
        return {"images": self._images, "counts": self._counts.tolist()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ImageStatistics:
        """Read the result of `to_json`.

        Raises:
            ValueError, KeyError, TypeError: `value` is invalid.
        """
        statistics = cls()
        counts = np.array(value["counts"], dtype=np.int64)
        if counts.shape != statistics._counts.shape or (counts < 0).any():
            raise ValueError(f"expected {statistics._counts.shape} counts, found {counts.shape}")
        statistics._counts, statistics._images = counts, int(value["images"])
        return statistics

    def result(self) -> dict[str, NDArray[Any]]:
        """The statistics so far: (C, 1, 1) in [0, 1], and `count` (1,), the number of images."""
        levels = np.arange(256) / 255
        total = self._counts.sum(axis=1).clip(1)
        mean = self._counts @ levels / total
        cumulative = self._counts.cumsum(axis=1)
        statistics = {
            "min": levels[(self._counts > 0).argmax(axis=1)],
            "max": levels[255 - (self._counts[:, ::-1] > 0).argmax(axis=1)],
            "mean": mean,
            "std": np.sqrt((self._counts * np.square(levels - mean[:, None])).sum(axis=1) / total),
        }
        for name, quantile in QUANTILES.items():
            rank = np.ceil(quantile * total).clip(1)
            statistics[name] = levels[(cumulative < rank[:, None]).sum(axis=1).clip(max=255)]
        shaped = {name: value.reshape(-1, 1, 1) for name, value in statistics.items()}
        return {**shaped, "count": np.array([self._images], dtype=np.int64)}


def grid_step(height: int, width: int) -> int:
    """The step between counted pixels: 1 below 300 pixels, then for about 150 on the longer side."""
    longer = max(height, width)
    return 1 if longer < 2 * GRID_SIDE else longer // GRID_SIDE


def vector_statistics(values: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """The exact statistics of a column, (n, *shape) with n ≥ 1; nearest-rank quantiles."""
    count, shape = len(values), values.shape[1:]
    table = values.reshape(count, math.prod(shape))
    at_once = max(1, _SORTED_AT_ONCE // count)  # dimensions
    parts = []
    for first in range(0, max(1, table.shape[1]), at_once):
        rows = table[:, first : first + at_once].astype(np.float64)
        ranked = np.sort(rows, axis=0)
        quantiles = [ranked[max(1, int(np.ceil(part * count))) - 1] for part in QUANTILES.values()]
        parts.append([ranked[0], ranked[-1], rows.mean(axis=0), rows.std(axis=0), *quantiles])
    names = ("min", "max", "mean", "std", *QUANTILES)
    statistics = {
        name: np.concatenate(part).reshape(shape)
        for name, part in zip(names, zip(*parts, strict=True), strict=True)
    }
    return {**statistics, "count": np.array([count], dtype=np.int64)}


def aggregate(episodes: Sequence[Mapping[str, Mapping[str, NDArray[Any]]]]) -> Statistics:
    """Aggregate the statistics of several episodes.

    All are exact except quantiles, which are bounds: up to q50 the lowest of the episodes, above it the highest (LeRobot's rule since
    0.6.1). A statistic that an episode lacks is dropped.
    """
    statistics: Statistics = {}
    for feature in dict.fromkeys(name for episode in episodes for name in episode):
        parts = [episode[feature] for episode in episodes if feature in episode]
        shared = [name for name in parts[0] if all(name in part for part in parts)]
        with np.errstate(all="ignore"):  # `check` reports non-finite values
            statistics[feature] = _aggregate_feature(parts, shared)
    return statistics


def _aggregate_feature(
    parts: Sequence[Mapping[str, NDArray[Any]]], shared: Sequence[str]
) -> dict[str, NDArray[Any]]:
    stacked = {
        name: np.stack([np.asarray(part[name], dtype=np.float64) for part in parts]) for name in shared
    }
    statistics: dict[str, NDArray[Any]] = {}
    if "min" in shared:
        statistics["min"] = stacked["min"].min(axis=0)
    if "max" in shared:
        statistics["max"] = stacked["max"].max(axis=0)
    for name in shared:
        if name.startswith("q") and name[1:].isdigit():
            bound = np.min if int(name[1:]) <= 50 else np.max
            statistics[name] = np.asarray(bound(stacked[name], axis=0))
    if "count" not in shared:
        return statistics
    total = stacked["count"].sum(axis=0)
    statistics["count"] = total

    def average(values: Float) -> Float:
        weights = stacked["count"].reshape(-1, *[1] * (values.ndim - 1))
        return np.asarray((values * weights).sum(axis=0) / total, dtype=np.float64)

    if "mean" in shared:
        statistics["mean"] = average(stacked["mean"])
        if "std" in shared:
            statistics["std"] = np.sqrt(
                average(stacked["std"] ** 2 + (stacked["mean"] - statistics["mean"]) ** 2)
            )
    return statistics


def statistics_to_json(statistics: Statistics) -> dict[str, dict[str, Any]]:
    """Statistics as JSON values: lists, with integer counts."""
    return {
        feature: {
            name: (
                np.asarray(value).astype(np.int64)
                if name == "count" and np.isfinite(value).all()
                else np.asarray(value)
            ).tolist()
            for name, value in values.items()
        }
        for feature, values in statistics.items()
    }

"""The statistics of a new dataset as a whole, while its episodes pass by."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smolact.datasets import format as layout
from smolact.datasets.edit import EditPlan
from smolact.datasets.format import Feature
from smolact.datasets.stats import ImageStatistics, aggregate, vector_statistics
from smolact.datasets.tables import column_array, read_table
from smolact.types import Statistics

Values = dict[str, NDArray[Any]]


class WholeStatistics:
    """What `stats.json` of a new dataset says.

    A feature of which no value changes keeps what its source says of it. Else vectors are counted from all frames, exactly.
    Cameras are, too, if every episode's pictures were looked at; if not, they are put together of the episodes' statistics.
    """

    def __init__(self, plan: EditPlan, features: Mapping[str, Feature]) -> None:
        source = plan.sources[0].meta
        # A v2.1 dataset has none of its own.
        keeps = plan.is_whole and not plan.recompute and source.codebase_version != "v2.1"
        self._kept = {
            name: usable(source.stats.get(name, {}), feature) for name, feature in features.items() if keeps
        }
        # Those of depth can't be computed here, and some datasets have none of single episodes.
        depth = [name for name in source.depth_keys if name in features and name in source.stats]
        self._depth: Statistics = {name: source.stats[name] for name in depth if plan.is_whole}
        self._vectors: dict[str, list[NDArray[Any]]] = {}
        self._pictures: dict[str, ImageStatistics] = {}
        self._looked_at: dict[str, int] = {}

    def add_vectors(self, name: str, values: NDArray[Any], changed: bool) -> None:
        """Take in a feature's values in one more episode; `changed` says that they are not what they were."""
        if changed:
            self._kept.pop(name, None)
        if not has_all(self._kept.get(name, {})) or name in layout.DEFAULT_FEATURES:
            self._vectors.setdefault(name, []).append(values)

    def add_pictures(self, name: str, statistics: ImageStatistics) -> None:
        """Take in what was seen of a camera in one more episode."""
        self._pictures.setdefault(name, ImageStatistics()).add(statistics)
        self._looked_at[name] = self._looked_at.get(name, 0) + 1

    def result(self, episodes: Sequence[Statistics]) -> Statistics:
        """The statistics, once all episodes have passed; `episodes` are each one's own."""
        found = aggregate(episodes)
        for name, values in found.items():
            kept = self._kept.get(name, {})
            if has_all(kept):
                found[name] = kept
            elif name in self._vectors:
                found[name] = vector_statistics(np.concatenate(self._vectors.pop(name)))
            elif self._looked_at.get(name) == len(episodes):
                found[name] = self._pictures[name].result()
            elif values.keys() <= kept.keys():
                found[name] = kept
        return {**found, **self._depth}


def has_all(statistics: Mapping[str, Any]) -> bool:
    """Whether all of a feature's statistics are there."""
    return all(name in statistics for name in layout.STATISTICS)


def usable(statistics: Mapping[str, NDArray[Any]], feature: Feature) -> Values:
    """Statistics in the shape that they must have, a camera's (C, 1, 1); none if one does not fit or is not finite."""
    shape = (feature.image_shape[0], 1, 1) if feature.is_image else feature.shape
    shapes = {name: (1,) if name == "count" else shape for name in statistics}
    if any(
        value.size != math.prod(shapes[name]) or not np.isfinite(value).all()
        for name, value in statistics.items()
    ):
        return {}
    return {name: value.reshape(shapes[name]) for name, value in statistics.items()}


def file_statistics(root: Path, places: Sequence[str], features: Mapping[str, Feature]) -> Statistics:
    """The statistics of all vectors in the data files `places`, relative to `root`, exactly.

    Raises:
        DatasetError: one is not there, or damaged.
    """
    names = [name for name, feature in features.items() if feature.is_numeric]
    tables = [(root / place, read_table(root / place, names)) for place in places]
    found: Statistics = {}
    for name in names:
        shape = features[name].shape
        parts = [column_array(table, name, shape, path).reshape(-1, *shape) for path, table in tables]
        found[name] = vector_statistics(np.concatenate(parts))
    return found

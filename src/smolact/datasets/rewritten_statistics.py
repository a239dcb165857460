"""Statistics of a new dataset, accumulated while its episodes are written."""

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


class DatasetStatistics:
    """The `stats.json` of a new dataset.

    A feature without changed values keeps its source's statistics. Other vectors are computed exactly from all frames, and
    cameras too if every episode's images were read; otherwise cameras are aggregated from the episodes' statistics.
    """

    def __init__(self, plan: EditPlan, features: Mapping[str, Feature]) -> None:
        source = plan.sources[0].meta
        # A v2.1 dataset has no dataset-wide statistics.
        reuse = plan.keeps_all_episodes and not plan.recompute and source.codebase_version != "v2.1"
        self._stored = {
            name: valid_statistics(source.stats.get(name, {}), feature)
            for name, feature in features.items()
            if reuse
        }
        # Depth statistics can't be computed here, and some datasets have none per episode.
        depth = [name for name in source.depth_keys if name in features and name in source.stats]
        self._depth: Statistics = {name: source.stats[name] for name in depth if plan.keeps_all_episodes}
        self._vectors: dict[str, list[NDArray[Any]]] = {}
        self._images: dict[str, ImageStatistics] = {}
        self._num_episodes_read: dict[str, int] = {}

    def add_vectors(self, name: str, values: NDArray[Any], changed: bool) -> None:
        """Add a feature's values of one more episode; `changed` if they differ from the source's."""
        if changed:
            self._stored.pop(name, None)
        if not is_complete(self._stored.get(name, {})) or name in layout.DEFAULT_FEATURES:
            self._vectors.setdefault(name, []).append(values)

    def add_images(self, name: str, statistics: ImageStatistics) -> None:
        """Add a camera's image statistics of one more episode."""
        self._images.setdefault(name, ImageStatistics()).add(statistics)
        self._num_episodes_read[name] = self._num_episodes_read.get(name, 0) + 1

    def result(self, episodes: Sequence[Statistics]) -> Statistics:
        """The statistics after all episodes; `episodes` are the per-episode statistics."""
        result = aggregate(episodes)
        for name, values in result.items():
            stored = self._stored.get(name, {})
            if is_complete(stored):
                result[name] = stored
            elif name in self._vectors:
                result[name] = vector_statistics(np.concatenate(self._vectors.pop(name)))
            elif self._num_episodes_read.get(name) == len(episodes):
                result[name] = self._images[name].result()
            elif values.keys() <= stored.keys():
                result[name] = stored
        return {**result, **self._depth}


def is_complete(statistics: Mapping[str, Any]) -> bool:
    """Whether all of a feature's statistics are present."""
    return all(name in statistics for name in layout.STATISTICS)


def valid_statistics(statistics: Mapping[str, NDArray[Any]], feature: Feature) -> Values:
    """Statistics reshaped to the required shape, a camera's (C, 1, 1); empty if one does not fit or is not finite."""
    shape = (feature.image_shape[0], 1, 1) if feature.is_image else feature.shape
    shapes = {name: (1,) if name == "count" else shape for name in statistics}
    if any(
        value.size != math.prod(shapes[name]) or not np.isfinite(value).all()
        for name, value in statistics.items()
    ):
        return {}
    return {name: value.reshape(shapes[name]) for name, value in statistics.items()}


def file_statistics(root: Path, paths: Sequence[str], features: Mapping[str, Feature]) -> Statistics:
    """The exact statistics of all vectors in the data files `paths`, relative to `root`.

    Raises:
        DatasetError: a file is missing or corrupt.
    """
    names = [name for name, feature in features.items() if feature.is_numeric]
    tables = [(root / relative, read_table(root / relative, names)) for relative in paths]
    result: Statistics = {}
    for name in names:
        shape = features[name].shape
        parts = [column_array(table, name, shape, path).reshape(-1, *shape) for path, table in tables]
        result[name] = vector_statistics(np.concatenate(parts))
    return result

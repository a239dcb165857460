"""The rows of a dataset: every column that is no camera, as arrays over the frames of the chosen episodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smolact.datasets.metadata import LeRobotDatasetMetadata
from smolact.datasets.rows import EpisodeRows
from smolact.datasets.tables import column_array, column_values, read_table
from smolact.errors import DatasetError

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Frames:
    """Columns over all frames of the chosen episodes, one after the other.

    Attributes:
        columns: name to array (frames, …): float32, int64, bool, or objects (text).
        starts: (episodes + 1,), where each chosen episode begins, and the end.
        rows: the rows of each episode in its data file, by frame.
    """

    columns: dict[str, NDArray[Any]]
    starts: Ints
    rows: dict[int, Ints]


def load_frames(meta: LeRobotDatasetMetadata, episodes: Sequence[int]) -> Frames:
    """Read the rows of `episodes` (ascending), in whatever order files, episodes and frames lie.

    Raises:
        DatasetError: a file is missing or damaged, or does not hold what the metadata says.
    """
    names = [name for name, feature in meta.features.items() if not feature.is_image]
    by_file: dict[str, list[int]] = {}
    for episode in episodes:
        by_file.setdefault(meta.episodes.data_path[episode], []).append(episode)
    parts: dict[str, list[NDArray[Any]]] = {name: [] for name in names}
    rows: dict[int, Ints] = {}
    for path, chosen in by_file.items():
        file = meta.root / path
        table = read_table(file, names)
        there = EpisodeRows(table, file)
        for episode in chosen:
            rows[episode] = there.whole(episode, int(meta.episodes.length[episode]))
        wanted = np.concatenate([rows[episode] for episode in chosen])
        as_it_is = len(wanted) == len(table) and (wanted == np.arange(len(table))).all()
        for name in names:
            column = _column(meta, table, name, file)
            parts[name].append(column if as_it_is else column[wanted])
    columns = {
        name: np.concatenate(arrays) if len(arrays) > 1 else arrays[0] for name, arrays in parts.items()
    }
    lengths = meta.episodes.length[list(episodes)]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    as_read = [episode for chosen in by_file.values() for episode in chosen]
    if as_read != list(episodes):  # a file has episodes from before and after another's
        ends = np.cumsum(meta.episodes.length[as_read])
        end_of = dict(zip(as_read, ends.tolist(), strict=True))
        places = [
            np.arange(end_of[episode] - length, end_of[episode])
            for episode, length in zip(episodes, lengths.tolist(), strict=True)
        ]
        order = np.concatenate(places)
        columns = {name: column[order] for name, column in columns.items()}
    return Frames(columns, starts, rows)


def _column(meta: LeRobotDatasetMetadata, table: Any, name: str, file: Any) -> NDArray[Any]:
    feature = meta.features[name]
    if not feature.is_numeric:
        values = np.empty(len(table), dtype=object)
        values[:] = column_values(table, name, file)
        return values
    array = column_array(table, name, feature.shape, file)
    if feature.shape in ((), (1,)):
        # A single number is a plain value, except where a policy reads a vector: there one joint is a vector too.
        vector = name.startswith(("observation.", "action"))
        array = array.reshape(-1, 1) if vector else array.reshape(-1)
    kind = {"f": np.float32, "b": np.bool_}.get(array.dtype.kind, np.int64)
    with np.errstate(over="ignore"):
        converted: NDArray[Any] = array.astype(kind, copy=False)
    if array.dtype == np.float64 and np.isinf(converted).sum() > np.isinf(array).sum():
        raise DatasetError(
            f"{file}: '{name}' holds numbers of {np.abs(array[np.isfinite(array)]).max():g}, beyond float32. Delete the "
            f"episode that has them: smolact dataset check --dataset.root={meta.root}"
        )
    return converted

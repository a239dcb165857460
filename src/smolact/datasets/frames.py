"""Read the non-camera columns of the selected episodes as arrays over their frames."""

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
    """The concatenated columns of the selected episodes.

    Attributes:
        columns: name to array (frames, …): float32, int64, bool, or object (text).
        starts: (episodes + 1,), the first frame of each episode, and the end.
        rows: episode to its rows in the data file, in frame order.
    """

    columns: dict[str, NDArray[Any]]
    starts: Ints
    rows: dict[int, Ints]


def load_frames(meta: LeRobotDatasetMetadata, episodes: Sequence[int]) -> Frames:
    """Read `episodes` (ascending), in any order of files, episodes and frames.

    Raises:
        DatasetError: a file is missing or damaged, or does not match the metadata.
    """
    names = [name for name, feature in meta.features.items() if not feature.is_image]
    by_file: dict[str, list[int]] = {}
    for episode in episodes:
        by_file.setdefault(meta.episodes.data_path[episode], []).append(episode)
    parts: dict[str, list[NDArray[Any]]] = {name: [] for name in names}
    rows: dict[int, Ints] = {}
    for path, selected in by_file.items():
        file = meta.root / path
        table = read_table(file, names)
        episode_rows = EpisodeRows(table, file)
        for episode in selected:
            rows[episode] = episode_rows.whole(episode, int(meta.episodes.length[episode]))
        order = np.concatenate([rows[episode] for episode in selected])
        unchanged = len(order) == len(table) and (order == np.arange(len(table))).all()
        for name in names:
            column = _column(meta, table, name, file)
            parts[name].append(column if unchanged else column[order])
    columns = {
        name: np.concatenate(arrays) if len(arrays) > 1 else arrays[0] for name, arrays in parts.items()
    }
    lengths = meta.episodes.length[list(episodes)]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    read_order = [episode for selected in by_file.values() for episode in selected]
    if read_order != list(episodes):  # the episodes of two files interleave
        ends = np.cumsum(meta.episodes.length[read_order])
        end_by_episode = dict(zip(read_order, ends.tolist(), strict=True))
        ranges = [
            np.arange(end_by_episode[episode] - length, end_by_episode[episode])
            for episode, length in zip(episodes, lengths.tolist(), strict=True)
        ]
        order = np.concatenate(ranges)
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
        # A single number is a scalar, except in observations and actions.
        vector = name.startswith(("observation.", "action"))
        array = array.reshape(-1, 1) if vector else array.reshape(-1)
    dtype = {"f": np.float32, "b": np.bool_}.get(array.dtype.kind, np.int64)
    with np.errstate(over="ignore"):
        converted: NDArray[Any] = array.astype(dtype, copy=False)
    if array.dtype == np.float64 and np.isinf(converted).sum() > np.isinf(array).sum():
        raise DatasetError(
            f"{file}: '{name}' holds numbers of {np.abs(array[np.isfinite(array)]).max():g}, beyond float32. Delete the "
            f"episode that has them: smolact dataset check --dataset.root={meta.root}"
        )
    return converted

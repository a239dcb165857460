"""Read the non-camera columns of the selected episodes as arrays over their frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smolact.datasets.metadata import LeRobotDatasetMetadata
from smolact.datasets.rows import DataFile, group_by_file
from smolact.datasets.tables import column_values
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
    groups = group_by_file(episodes, meta.episodes.data_path.__getitem__)
    parts: dict[str, list[NDArray[Any]]] = {name: [] for name in names}
    rows: dict[int, Ints] = {}
    for path, selected in groups.items():
        file = DataFile(meta.root, path, names)
        for episode in selected:
            rows[episode] = file.complete_rows(episode, int(meta.episodes.length[episode]))
        order = np.concatenate([rows[episode] for episode in selected])
        unchanged = len(order) == file.count and (order == np.arange(file.count)).all()
        for name in names:
            column = _column(meta, file, name)
            parts[name].append(column if unchanged else column[order])
    columns = {
        name: np.concatenate(arrays) if len(arrays) > 1 else arrays[0] for name, arrays in parts.items()
    }
    lengths = meta.episodes.length[list(episodes)]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    read_order = [episode for selected in groups.values() for episode in selected]
    if read_order != list(episodes):  # the episodes of two files interleave
        order = np.argsort(np.repeat(read_order, meta.episodes.length[read_order]), kind="stable")
        columns = {name: column[order] for name, column in columns.items()}
    return Frames(columns, starts, rows)


def _column(meta: LeRobotDatasetMetadata, file: DataFile, name: str) -> NDArray[Any]:
    feature = meta.features[name]
    if not feature.is_numeric:
        values = np.empty(file.count, dtype=object)
        values[:] = column_values(file.table, name, file.file)
        return values
    array = file.column(name, feature.shape)
    if feature.shape in ((), (1,)):
        # A single number is a scalar, except in observations and actions.
        vector = name.startswith(("observation.", "action"))
        array = array.reshape(-1, 1) if vector else array.reshape(-1)
    dtype = {"f": np.float32, "b": np.bool_}.get(array.dtype.kind, np.int64)
    with np.errstate(over="ignore"):
        converted: NDArray[Any] = array.astype(dtype, copy=False)
    if array.dtype == np.float64 and np.isinf(converted).sum() > np.isinf(array).sum():
        raise DatasetError(
            f"{file.file}: '{name}' holds numbers of {np.abs(array[np.isfinite(array)]).max():g}, beyond float32. Delete the "
            f"episode that has them: smolact dataset check --dataset.root={meta.root}"
        )
    return converted

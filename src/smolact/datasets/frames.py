"""The rows of a dataset: every column that is no camera, as arrays over the frames of the chosen episodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smolact.datasets.metadata import LeRobotDatasetMetadata
from smolact.datasets.tables import column_array, column_values, read_table
from smolact.errors import DatasetError

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Frames:
    """Columns over all frames of the chosen episodes, one after the other.

    Attributes:
        columns: name to array (frames, …): float32, int64, bool, or objects (text).
        starts: (episodes + 1,), where each chosen episode begins, and the end.
        first_row: the row of each episode's first frame in its data file.
    """

    columns: dict[str, NDArray[Any]]
    starts: Ints
    first_row: dict[int, int]


def load_frames(meta: LeRobotDatasetMetadata, episodes: Sequence[int]) -> Frames:
    """Read the rows of `episodes` (ascending).

    Raises:
        DatasetError: a file is missing or damaged, or does not hold what the metadata says.
    """
    names = [name for name, feature in meta.features.items() if not feature.is_image]
    parts: dict[str, list[NDArray[Any]]] = {name: [] for name in names}
    first_row: dict[int, int] = {}
    for path, group in groupby(episodes, key=meta.episodes.data_path.__getitem__):
        chosen = list(group)
        file = meta.root / path
        table = read_table(file, names)
        where = column_array(table, "episode_index", (1,), file).reshape(-1)
        edges = np.concatenate([[0], np.flatnonzero(np.diff(where)) + 1, [len(where)]])
        rows_of = {int(where[start]): (int(start), int(end)) for start, end in pairwise(edges) if end > start}
        steps = column_array(table, "frame_index", (1,), file).reshape(-1)
        spans = []
        for episode in chosen:
            start, end = rows_of.get(episode, (0, 0))
            length = int(meta.episodes.length[episode])
            if end - start != length or (steps[start:end] != np.arange(length)).any():
                raise DatasetError(
                    f"{file}: episode {episode} should have {length} frames, numbered from 0; found {end - start}. "
                    "The file does not fit the metadata, or is cut off: fetch the dataset again."
                )
            first_row[episode] = start
            spans.append(slice(start, end))
        for name in names:
            column = _column(meta, table, name, file)
            whole = len(spans) == len(rows_of)
            parts[name].append(column if whole else np.concatenate([column[span] for span in spans]))
    lengths = meta.episodes.length[list(episodes)]
    columns = {
        name: np.concatenate(arrays) if len(arrays) > 1 else arrays[0] for name, arrays in parts.items()
    }
    return Frames(columns, np.concatenate([[0], np.cumsum(lengths)]), first_row)


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

"""Data files: the rows of an episode by its number, in any row order, and the columns of the selected episodes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from smolact.datasets.metadata import LeRobotDatasetMetadata
from smolact.datasets.tables import column_array, column_values, read_table
from smolact.errors import DatasetError

Ints = NDArray[np.int64]
Item = TypeVar("Item")


class DataFile:
    """A data file of the dataset in folder `root`, with its columns `names` (all when None).

    Raises:
        DatasetError: the file is missing or damaged, or lacks one of `names`, `episode_index` or `frame_index`.
    """

    def __init__(self, root: Path, name: str, names: Sequence[str] | None = None) -> None:
        self.name, self.file = name, root / name
        self.table = read_table(self.file, names)
        self.count = self.table.num_rows
        columns = (self.column(name, (1,)).reshape(-1) for name in ("episode_index", "frame_index"))
        episodes, self._steps = (
            column if column.dtype.kind == "f" else column.astype(np.int64, copy=False) for column in columns
        )
        episode_steps = np.diff(episodes)
        in_order = ((episode_steps > 0) | ((episode_steps == 0) & (np.diff(self._steps) > 0))).all()
        self._order: Ints = np.arange(self.count) if in_order else np.lexsort((self._steps, episodes))
        self._episodes = episodes[self._order]

    def column(self, name: str, shape: tuple[int, ...]) -> NDArray[Any]:
        """The values (rows, *shape) of a numeric column; see `column_array`."""
        return column_array(self.table, name, shape, self.file)

    def rows_of(self, episode: int) -> Ints:
        """The rows (n,) of an episode, sorted by `frame_index`."""
        first, end = np.searchsorted(self._episodes, [episode, episode + 1])
        return self._order[first:end]

    def complete_rows(self, episode: int, length: int, name: int | None = None) -> Ints:
        """The rows (length,) of a complete episode; `name` is its number in messages, if it differs.

        Raises:
            DatasetError: the episode does not have `length` rows with a `frame_index` from 0.
        """
        rows = self.rows_of(episode)
        if len(rows) != length or (self._steps[rows] != np.arange(length)).any():
            number = episode if name is None else name
            raise DatasetError(
                f"{self.file}: episode {number} should have {length} frames, numbered from 0; found {len(rows)}. "
                "The file does not fit the metadata, or is cut off: fetch the dataset again. See all that is wrong: smolact dataset "
                "check"
            )
        return rows


def group_by_file(items: Iterable[Item], file_of: Callable[[Item], str]) -> dict[str, list[Item]]:
    """File to its items, in the order of their first appearance."""
    groups: dict[str, list[Item]] = {}
    for item in items:
        groups.setdefault(file_of(item), []).append(item)
    return groups


def take_rows(table: pa.Table, rows: Ints) -> pa.Table:
    """These rows of a table, in this order; no copy if they are contiguous."""
    if len(rows) and (np.diff(rows) == 1).all():
        return table.slice(int(rows[0]), len(rows))
    return table.take(pa.array(rows))


def load_frames(
    meta: LeRobotDatasetMetadata, episodes: Sequence[int]
) -> tuple[dict[str, NDArray[Any]], Ints, dict[int, Ints]]:
    """Read the columns of `episodes` (ascending) other than cameras, in any order of files, episodes and frames.

    Returns:
        the columns, name to array (frames, …) of float32, int64, bool, or object (text); the first frame of each episode, and
        the end, (episodes + 1,); and episode to its rows in the data file, in frame order.

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
    return columns, starts, rows


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

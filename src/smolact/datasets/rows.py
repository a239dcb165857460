"""Find the rows of episodes in a data file by number, in any row order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from smolact.datasets.tables import column_array, read_table
from smolact.errors import DatasetError

Ints = NDArray[np.int64]
Item = TypeVar("Item")
NUMBERS = ("episode_index", "frame_index")


class EpisodeRows:
    """The rows of each episode in one data file.

    Args:
        table: with the columns `NUMBERS`.
        file: for error messages.

    Raises:
        DatasetError: a column is missing or not numeric.
    """

    def __init__(self, table: pa.Table, file: Path) -> None:
        self.file, self.count = file, table.num_rows
        columns = (column_array(table, name, (1,), file).reshape(-1) for name in NUMBERS)
        episodes, self._steps = (
            column if column.dtype.kind == "f" else column.astype(np.int64, copy=False) for column in columns
        )
        episode_steps = np.diff(episodes)
        in_order = ((episode_steps > 0) | ((episode_steps == 0) & (np.diff(self._steps) > 0))).all()
        self._order: Ints = np.arange(self.count) if in_order else np.lexsort((self._steps, episodes))
        self._episodes = episodes[self._order]

    def rows_of(self, episode: int) -> Ints:
        """The rows (n,) of an episode, sorted by `frame_index`."""
        first, end = np.searchsorted(self._episodes, [episode, episode + 1])
        return self._order[first:end]

    def complete_rows(self, episode: int, length: int, name: int | None = None) -> Ints:
        """The rows (length,) of a complete episode.

        Args:
            episode: the episode index in the file.
            length: the expected number of rows.
            name: the episode number for messages, if it differs.

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


class DataFile(EpisodeRows):
    """A data file of the dataset in folder `root`, with its columns `names` (all when None).

    Raises:
        DatasetError: the file is missing or damaged, or lacks one of `names` or `NUMBERS`.
    """

    def __init__(self, root: Path, name: str, names: Sequence[str] | None = None) -> None:
        self.name = name
        self.table = read_table(root / name, names)
        super().__init__(self.table, root / name)

    def column(self, name: str, shape: tuple[int, ...]) -> NDArray[Any]:
        """The values (rows, *shape) of a numeric column; see `column_array`."""
        return column_array(self.table, name, shape, self.file)


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

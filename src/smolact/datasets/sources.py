"""`Source`: an existing dataset, of any version, as the tools take it apart: an episode at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from smolact.datasets import format as layout
from smolact.datasets.cameras import decode_image
from smolact.datasets.lock import ReadLock
from smolact.datasets.metadata import LeRobotDatasetMetadata
from smolact.datasets.remux import Cut
from smolact.datasets.tables import column_array, column_values, episodes_schema, read_table
from smolact.datasets.video import Image, VideoReader
from smolact.errors import DatasetError
from smolact.types import Statistics

DECODED_AT_ONCE = 32
_COLUMNS_V2 = ("episode_index", "tasks", "length")


class Source:
    """The dataset in folder `root`.

    Args:
        root: the folder.
        held: no edit may take the files away as long as this is there.

    Raises:
        NotFoundError: there is no such folder.
        DatasetError: it is damaged.
    """

    def __init__(self, root: str | Path, *, held: bool = False) -> None:
        self._held = ReadLock(Path(root)) if held else None
        self.meta = LeRobotDatasetMetadata(root)
        self._statistics, self._more = _said_of_episodes(self.meta)
        self._open: tuple[str, pa.Table, NDArray[Any]] | None = None

    def statistics(self, episode: int) -> Statistics:
        """What the metadata keeps of an episode's statistics; empty where it keeps none."""
        return self._statistics[episode] if self._statistics else {}

    def more(self, episode: int) -> dict[str, Any]:
        """What the metadata says of an episode beyond what the format has: other tools' annotations, such as SARM's."""
        return self._more[episode] if self._more else {}

    def number_in_file(self, episode: int) -> int:
        """What the column `episode_index` says of an episode."""
        return episode

    def table(self, episode: int) -> pa.Table:
        """The rows of an episode, all columns.

        Raises:
            DatasetError: the file is damaged, or has not as many rows as the metadata says.
        """
        place = self.meta.episodes.data_path[episode]
        path = self.meta.root / place
        if self._open is None or self._open[0] != place:
            whole = read_table(path)
            if "episode_index" not in whole.column_names:
                raise DatasetError(f"{path} has no column 'episode_index'. Fetch the dataset again.")
            self._open = place, whole, column_array(whole, "episode_index", (1,), path).reshape(-1)
        _, whole, numbers = self._open
        rows, length = (
            np.flatnonzero(numbers == self.number_in_file(episode)),
            int(self.meta.episodes.length[episode]),
        )
        if len(rows) != length or rows[-1] - rows[0] != length - 1:
            raise DatasetError(
                f"{path}: episode {episode} should have {length} rows together, found {len(rows)}. See what is wrong: "
                f"smolact dataset check --dataset.root={self.meta.root}"
            )
        return whole.slice(int(rows[0]), length)

    def cut(self, key: str, episode: int) -> Cut:
        """Where an episode lies in the video of camera `key`."""
        table = self.meta.episodes
        first = int(np.rint(table.from_timestamp[key][episode] * self.meta.fps))
        return Cut(self.meta.root / table.video_path[key][episode], first, int(table.length[episode]))

    def images(self, key: str, episode: int) -> Iterator[Image]:
        """The pictures of camera `key` in an episode, (H, W, 3) uint8.

        Raises:
            DatasetError: one can't be decoded.
        """
        feature = self.meta.features[key]
        if feature.dtype == "video":
            yield from decode(self.cut(key, episode))
            return
        path = self.meta.root / self.meta.episodes.data_path[episode]
        column = self.table(episode).select([key])
        for row, value in enumerate(column_values(column, key, path)):
            data = value.get("bytes") if isinstance(value, dict) else None
            where = f"{path}, episode {episode}, row {row}, '{key}'"
            yield decode_image(data, feature.image_shape[1:], where)


def decode(cut: Cut) -> Iterator[Image]:
    """The frames of a cut."""
    reader = VideoReader(cut.path)
    try:
        for start in range(cut.first, cut.first + cut.count, DECODED_AT_ONCE):
            yield from reader.frames(np.arange(start, min(start + DECODED_AT_ONCE, cut.first + cut.count)))
    finally:
        reader.close()


def _said_of_episodes(meta: LeRobotDatasetMetadata) -> tuple[list[Statistics], list[dict[str, Any]]]:
    """The statistics of each episode, and what else is said of it that the format does not have."""
    if meta.codebase_version == "v3.0":
        return _said_v3(meta)
    lines = {row.get("episode_index"): row for row in layout.read_json_lines(meta.root / layout.EPISODES_V2)}
    more = [
        {name: value for name, value in lines[number].items() if name not in _COLUMNS_V2}
        for number in range(meta.total_episodes)
    ]
    path = meta.root / layout.EPISODES_STATS_V21
    if not path.exists():
        return [], more
    rows = {row.get("episode_index"): row.get("stats") for row in layout.read_json_lines(path)}
    return [_to_arrays(rows.get(number) or {}, path) for number in range(meta.total_episodes)], more


def _said_v3(meta: LeRobotDatasetMetadata) -> tuple[list[Statistics], list[dict[str, Any]]]:
    statistics: list[Statistics] = []
    more: list[dict[str, Any]] = []
    for path in sorted((meta.root / layout.EPISODES_FOLDER).glob("*/*.parquet")):
        if path.name.startswith("."):
            continue
        table = read_table(path)
        statistics += table_statistics(table, path)
        more += table_more(table, path)
    return statistics[: meta.total_episodes], more[: meta.total_episodes]


def table_more(table: pa.Table, path: Path) -> list[dict[str, Any]]:
    """The columns of a table of `meta/episodes` that the format does not have, a row each."""
    known = set(episodes_schema({}).names)
    names = [
        name
        for name in table.column_names
        if name not in known and not name.startswith(("stats/", "videos/"))
    ]
    columns = {name: column_values(table, name, path) for name in names}
    return [{name: columns[name][row] for name in names} for row in range(table.num_rows)]


def table_statistics(table: pa.Table, path: Path) -> list[Statistics]:
    """The statistics in a table of `meta/episodes`, a row each.

    Raises:
        DatasetError: they are no numbers.
    """
    names = [name for name in table.column_names if name.startswith("stats/")]
    columns = {name: column_values(table, name, path) for name in names}
    found = []
    for row in range(table.num_rows):
        value: dict[str, dict[str, Any]] = {}
        for name in names:
            feature, _, statistic = name.removeprefix("stats/").rpartition("/")
            if columns[name][row] is not None:
                value.setdefault(feature, {})[statistic] = columns[name][row]
        found.append(_to_arrays(value, path))
    return found


def _to_arrays(value: Any, path: Path) -> Statistics:
    try:
        return {
            feature: {name: np.array(number, dtype=np.float64) for name, number in stats.items()}
            for feature, stats in value.items()
        }
    except (AttributeError, TypeError, ValueError) as error:
        raise DatasetError(
            f"{path}: expected {{feature: {{statistic: numbers}}}} ({error}). Compute them again: smolact dataset stats"
        ) from error

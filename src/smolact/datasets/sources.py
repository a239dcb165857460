"""`Source`: an existing dataset of any version, read episode by episode by the dataset tools."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from smolact.datasets import format as layout
from smolact.datasets.cameras import decode_image
from smolact.datasets.depth import check_no_depth
from smolact.datasets.episodes import episode_tables
from smolact.datasets.format import UNITS, Feature, flat_names
from smolact.datasets.lock import ReadLock
from smolact.datasets.metadata import LeRobotDatasetMetadata, read_episode_stats, to_statistics
from smolact.datasets.remux import Cut
from smolact.datasets.rows import DataFile, take_rows
from smolact.datasets.tables import column_array, column_values, episodes_schema, read_table, to_column
from smolact.datasets.video import Image, VideoReader
from smolact.errors import DatasetError
from smolact.types import Statistics

DECODED_AT_ONCE = 32
RECOMPUTE = "Compute them again: smolact dataset stats"
_COLUMNS_V2 = ("episode_index", "tasks", "length")


class Source:
    """The dataset in folder `root`.

    Args:
        locked: hold a read lock for the object's lifetime, so that no edit replaces the files.

    Raises:
        NotFoundError: the folder does not exist.
        DatasetError: the dataset is corrupt.
    """

    def __init__(self, root: str | Path, *, locked: bool = False) -> None:
        self._read_lock = ReadLock(Path(root)) if locked else None
        self.meta = LeRobotDatasetMetadata(root)
        self._statistics, self._extra_metadata = _episode_metadata(self.meta)
        self._open: DataFile | None = None

    def statistics(self, episode: int) -> Statistics:
        """An episode's statistics in the metadata; empty if there are none."""
        return self._statistics[episode] if self._statistics else {}

    def extra_metadata(self, episode: int) -> dict[str, Any]:
        """An episode's metadata beyond the format: annotations by other tools, such as SARM's."""
        return self._extra_metadata[episode] if self._extra_metadata else {}

    def number_in_file(self, episode: int) -> int:
        """The value of the column `episode_index` for an episode."""
        return episode

    def table(self, episode: int) -> pa.Table:
        """The rows of an episode in order, with all columns.

        Raises:
            DatasetError: the file is corrupt, or its number of rows differs from the metadata.
        """
        relative = self.meta.episodes.data_path[episode]
        if self._open is None or self._open.name != relative:
            self._open = DataFile(self.meta.root, relative)
        length = int(self.meta.episodes.length[episode])
        rows = self._open.complete_rows(self.number_in_file(episode), length, name=episode)
        return take_rows(self._open.table, rows)

    def data_file(self, episode: int) -> Path:
        """The data file of an episode."""
        return self.meta.root / self.meta.episodes.data_path[episode]

    def values(self, name: str, episode: int) -> NDArray[Any]:
        """A numeric feature in an episode, (frames, *shape), or (frames,) if its column holds scalars; see `column_array`."""
        shape = self.meta.features[name].shape
        return column_array(self.table(episode), name, shape, self.data_file(episode))

    def cut(self, key: str, episode: int) -> Cut:
        """The frame range of an episode in the video of camera `key`."""
        table = self.meta.episodes
        first = int(np.rint(table.from_timestamp[key][episode] * self.meta.fps))
        return Cut(self.meta.root / table.video_path[key][episode], first, int(table.length[episode]))

    def images(self, key: str, episode: int) -> Iterator[Image]:
        """The images of camera `key` in an episode, (H, W, 3) uint8.

        Raises:
            ConfigError: the camera is a depth camera.
            DatasetError: an image can't be decoded.
        """
        check_no_depth(self.meta, [key], "a picture")
        feature = self.meta.features[key]
        if feature.dtype == "video":
            yield from decode(self.cut(key, episode))
            return
        path = self.data_file(episode)
        column = self.table(episode).select([key])
        for row, value in enumerate(column_values(column, key, path)):
            data = value.get("bytes") if isinstance(value, dict) else None
            where = f"{path}, episode {episode}, row {row}, '{key}'"
            yield decode_image(data, feature.image_shape[1:], where)


class ReorderedSource(Source):
    """A dataset with reordered dimensions of some vectors, in rows, statistics and names alike.

    Args:
        orders: feature to the old indices of its dimensions, in the new order.
        features: the features with the reordered names.

    Raises:
        DatasetError: a statistic of a reordered vector has the wrong length (`statistics` too).
    """

    def __init__(
        self, source: Source, orders: Mapping[str, Sequence[int]], features: Mapping[str, Feature]
    ) -> None:
        super().__init__(source.meta.root)
        self._orders = orders
        for name, order in orders.items():
            feature = self.meta.features[name]
            units = flat_names(feature.info.get(UNITS))
            info = (
                {**feature.info, UNITS: [units[index] for index in order]}
                if len(units) == len(order)
                else feature.info
            )
            self.meta.features[name] = replace(feature, names=features[name].names, info=info)
        self.meta.stats = self._reordered(self.meta.stats)

    def statistics(self, episode: int) -> Statistics:
        """See `Source`."""
        return self._reordered(super().statistics(episode))

    def table(self, episode: int) -> pa.Table:
        """See `Source`."""
        table = super().table(episode)
        path = self.data_file(episode)
        for name, order in self._orders.items():
            feature = self.meta.features[name]
            values = column_array(table, name, feature.shape, path)[:, order]
            column = table.schema.get_field_index(name)
            table = table.set_column(column, name, to_column(feature, values))
        return table

    def _reordered(self, statistics: Statistics) -> Statistics:
        reordered = {
            name: {
                statistic: value if statistic == "count" else self._in_order(name, statistic, value)
                for statistic, value in values.items()
            }
            for name, values in statistics.items()
            if name in self._orders
        }
        return {**statistics, **reordered}

    def _in_order(self, name: str, statistic: str, value: NDArray[Any]) -> NDArray[Any]:
        order = self._orders[name]
        if value.shape != (len(order),):
            raise DatasetError(
                f"{self.meta.root}: the statistic '{statistic}' of '{name}' must have {len(order)} numbers, one for each name; found "
                f"the shape {value.shape}. Compute the statistics again: smolact dataset stats --dataset.root={self.meta.root}"
            )
        return value[list(order)]


def decode(cut: Cut) -> Iterator[Image]:
    """The frames of a cut."""
    reader = VideoReader(cut.path)
    try:
        for start in range(cut.first, cut.first + cut.count, DECODED_AT_ONCE):
            yield from reader.frames(np.arange(start, min(start + DECODED_AT_ONCE, cut.first + cut.count)))
    finally:
        reader.close()


def _episode_metadata(meta: LeRobotDatasetMetadata) -> tuple[list[Statistics], list[dict[str, Any]]]:
    """Each episode's statistics and its metadata beyond the format."""
    statistics: list[Statistics] = []
    extra: list[dict[str, Any]] = []
    if meta.codebase_version == "v3.0":
        for path in episode_tables(meta.root):
            table = read_table(path)
            statistics += table_statistics(table, path)
            extra += extra_columns(table, path)
        return statistics[: meta.total_episodes], extra[: meta.total_episodes]
    lines = layout.read_json_lines(meta.root / layout.EPISODES_V2)
    rows = {layout.whole_number(row.get("episode_index")): row for row in lines}
    for number in range(meta.total_episodes):
        extra.append({name: value for name, value in rows[number].items() if name not in _COLUMNS_V2})
    path = meta.root / layout.EPISODES_STATS_V21
    return read_episode_stats(path, meta.total_episodes) if path.exists() else [], extra


def extra_columns(table: pa.Table, path: Path) -> list[dict[str, Any]]:
    """The columns of a `meta/episodes` table that are not in the format, one dict per row."""
    known = set(episodes_schema({}).names)
    names = [
        name
        for name in table.column_names
        if name not in known and not name.startswith(("stats/", "videos/"))
    ]
    columns = {name: column_values(table, name, path) for name in names}
    return [{name: columns[name][row] for name in names} for row in range(table.num_rows)]


def table_statistics(table: pa.Table, path: Path) -> list[Statistics]:
    """The statistics in a `meta/episodes` table, one entry per row.

    Raises:
        DatasetError: the values are not numeric.
    """
    names = [name for name in table.column_names if name.startswith("stats/")]
    columns = {name: column_values(table, name, path) for name in names}
    statistics = []
    for row in range(table.num_rows):
        value: dict[str, dict[str, Any]] = {}
        for name in names:
            feature, _, statistic = name.removeprefix("stats/").rpartition("/")
            if columns[name][row] is not None:
                value.setdefault(feature, {})[statistic] = columns[name][row]
        statistics.append(to_statistics(value, path, RECOMPUTE))
    return statistics

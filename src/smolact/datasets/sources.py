"""`Source`: an existing dataset, of any version, as the tools take it apart: an episode at a time."""

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
from smolact.datasets.format import UNITS, Feature, flat_names
from smolact.datasets.lock import ReadLock
from smolact.datasets.metadata import LeRobotDatasetMetadata
from smolact.datasets.remux import Cut
from smolact.datasets.rows import EpisodeRows, taken
from smolact.datasets.tables import column_array, column_values, episodes_schema, read_table, to_column
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
        self._open: tuple[str, pa.Table, EpisodeRows] | None = None

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
        """The rows of an episode in order, all columns.

        Raises:
            DatasetError: the file is damaged, or has not as many rows as the metadata says.
        """
        place = self.meta.episodes.data_path[episode]
        path = self.meta.root / place
        if self._open is None or self._open[0] != place:
            whole = read_table(path)
            self._open = place, whole, EpisodeRows(whole, path)
        _, whole, rows = self._open
        length = int(self.meta.episodes.length[episode])
        return taken(whole, rows.whole(self.number_in_file(episode), length, name=episode))

    def cut(self, key: str, episode: int) -> Cut:
        """Where an episode lies in the video of camera `key`."""
        table = self.meta.episodes
        first = int(np.rint(table.from_timestamp[key][episode] * self.meta.fps))
        return Cut(self.meta.root / table.video_path[key][episode], first, int(table.length[episode]))

    def images(self, key: str, episode: int) -> Iterator[Image]:
        """The pictures of camera `key` in an episode, (H, W, 3) uint8.

        Raises:
            ConfigError: it is a depth camera.
            DatasetError: one can't be decoded.
        """
        check_no_depth(self.meta, [key], "a picture")
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


class ReorderedSource(Source):
    """A dataset with the numbers of some vectors in another order, in its rows, statistics and names alike.

    Args:
        source: the dataset as it is.
        orders: feature to which of its numbers comes first, second, …
        features: those with the names that it then has.

    Raises:
        DatasetError: a statistic of one of these vectors has another length (`statistics` too).
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
                {**feature.info, UNITS: [units[place] for place in order]}
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
        path = self.meta.root / self.meta.episodes.data_path[episode]
        for name, order in self._orders.items():
            feature = self.meta.features[name]
            values = column_array(table, name, feature.shape, path)[:, order]
            place = table.schema.get_field_index(name)
            table = table.set_column(place, name, to_column(feature, values))
        return table

    def _reordered(self, statistics: Statistics) -> Statistics:
        changed = {
            name: {
                statistic: value if statistic == "count" else self._in_order(name, statistic, value)
                for statistic, value in values.items()
            }
            for name, values in statistics.items()
            if name in self._orders
        }
        return {**statistics, **changed}

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


def _said_of_episodes(meta: LeRobotDatasetMetadata) -> tuple[list[Statistics], list[dict[str, Any]]]:
    """The statistics of each episode, and what else is said of it that the format does not have."""
    if meta.codebase_version == "v3.0":
        return _said_v3(meta)
    lines = {
        layout.whole_number(row.get("episode_index")): row
        for row in layout.read_json_lines(meta.root / layout.EPISODES_V2)
    }
    more = [
        {name: value for name, value in lines[number].items() if name not in _COLUMNS_V2}
        for number in range(meta.total_episodes)
    ]
    path = meta.root / layout.EPISODES_STATS_V21
    if not path.exists():
        return [], more
    rows = {
        layout.whole_number(row.get("episode_index")): row.get("stats")
        for row in layout.read_json_lines(path)
    }
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

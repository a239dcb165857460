"""Which episodes of a damaged dataset are wholly there: a row of metadata, all rows of data, all frames of every camera.

Nothing is trusted and nothing is written. What `inspection.py` calls an error of an episode makes it not whole here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from smolact.datasets import format as layout
from smolact.datasets.cameras import check_depth_image, decode_image
from smolact.datasets.episodes import Episodes
from smolact.datasets.faults import Progress, no_progress
from smolact.datasets.format import DEFAULT_FEATURES
from smolact.datasets.inspected_files import DECODED_AT_ONCE, TIME_TOLERANCE
from smolact.datasets.metadata import LeRobotDatasetMetadata, read_tasks_v3
from smolact.datasets.path_checks import check_inside, unfit
from smolact.datasets.rows import EpisodeRows, taken
from smolact.datasets.sizes import first_size
from smolact.datasets.sources import Source, table_more, table_statistics
from smolact.datasets.tables import column_array, column_values, read_table
from smolact.datasets.video import VideoReader
from smolact.errors import ConfigError, DatasetError
from smolact.openable import leads_out
from smolact.types import Statistics

NAMES = ("episode_index", "tasks", "length", "data/chunk_index", "data/file_index")


@dataclass
class Row:
    """A row of `meta/episodes`.

    Attributes:
        number: the episode's, as its data rows have it.
        place: the file that the row is in, and its number there.
        data: the file of its data, relative to the root.
        videos: camera to file and number of its first frame there.
        more: what other tools say of it.
        edges: the numbers of its first frame in the dataset and of the one after its last, as the row says.
        in_place: its counters are those that readers expect, were it in a whole dataset.
    """

    number: int
    length: int
    tasks: tuple[str, ...]
    place: tuple[Path, int]
    data: str
    videos: dict[str, tuple[str, int]]
    edges: tuple[Any, Any]
    statistics: Statistics
    more: dict[str, Any]
    in_place: bool = True


@dataclass
class RecoveryReport:
    """What there is of a dataset (v3.0) in `root`.

    Attributes:
        meta: its features and settings; its tasks, completed from its episodes; no episodes.
        rows: those of the episodes that are whole, in order.
        lost: what is wrong, a line each.
        table_rows: file of `meta/episodes` to how many rows it has.
        frames: data file to how many rows it has.
        learned: `tasks.parquet` is not there, or lacks a task that `meta.tasks` has.
    """

    meta: LeRobotDatasetMetadata
    rows: list[Row] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    table_rows: dict[Path, int] = field(default_factory=dict)
    frames: dict[str, int] = field(default_factory=dict)
    tasks_recovered: bool = False

    def is_in_order(self) -> bool:
        """Whether the whole episodes are a dataset as they lie there, so that only `meta` has to be written."""
        places = [row.place for row in self.rows]
        if [row.number for row in self.rows] != list(range(len(places))) or places != sorted(places):
            return False
        wanted, first = dict.fromkeys((row.data for row in self.rows), 0), 0
        for row in self.rows:
            wanted[row.data] += row.length
            if not row.in_place or row.edges != (first, first + row.length):
                return False
            first += row.length
        texts = set(self.meta.tasks.values())
        return (
            all(self.frames[name] == frames for name, frames in wanted.items())
            and all(texts.issuperset(row.tasks) for row in self.rows)
            and sorted(self.meta.tasks) == list(range(len(self.meta.tasks)))
        )


class RecoveredSource(Source):
    """The whole episodes as a dataset of their own, numbered from 0."""

    def __init__(self, found: RecoveryReport) -> None:
        rows, meta = found.rows, found.meta
        first = {
            key: np.array([row.videos[key][1] for row in rows], dtype=np.float64) for key in meta.video_keys
        }
        lengths = np.array([row.length for row in rows], dtype=np.int64)
        meta.episodes = Episodes(
            lengths,
            [row.tasks for row in rows],
            [row.data for row in rows],
            {key: [row.videos[key][0] for row in rows] for key in meta.video_keys},
            {key: numbers / meta.fps for key, numbers in first.items()},
            {key: (numbers + lengths) / meta.fps for key, numbers in first.items()},
        )
        meta.total_episodes, meta.total_frames = len(rows), int(lengths.sum())
        # Not by Source's own way, which wants a dataset that is whole.
        self.meta, self._open = meta, None
        self._statistics, self._more = [row.statistics for row in rows], [row.more for row in rows]
        self._numbers = [row.number for row in rows]

    def number_in_file(self, episode: int) -> int:
        """What the column `episode_index` says of an episode."""
        return self._numbers[episode]


class InfoOnlyMetadata(LeRobotDatasetMetadata):
    """What `info.json` says, whatever the rest is like."""

    def _read_tables(self) -> None:
        self.tasks, self.stats = {}, {}
        self.episodes = Episodes(np.zeros(0, dtype=np.int64), [], [], {}, {}, {})

    def look_at_files(self) -> None:
        """Each is looked at by itself: one that must not be opened costs only its own episodes."""


def find_intact_episodes(root: Path, quick: bool = False, progress: Progress = no_progress) -> RecoveryReport:
    """Look at every episode that any metadata of the dataset in `root` tells of.

    Args:
        root: the folder.
        quick: decode no pictures.
        progress: told of each episode.

    Raises:
        NotFoundError: there is no such folder.
        ConfigError: it is of an older version.
        DatasetError: `info.json` is not there or damaged, or something of `meta`, or a folder, must not be opened.
    """
    meta = InfoOnlyMetadata(root)
    for fault in unfit(root):
        if (
            root / fault.place
        ).is_dir():  # the files in there may be whole, and are not this dataset's to move
            raise DatasetError(f"{root / fault.place} {fault.message}")
    if meta.codebase_version != layout.WRITTEN_VERSION:
        raise ConfigError(
            f"{root} is a dataset of version {meta.codebase_version}, and only {layout.WRITTEN_VERSION} is mended. See what "
            f"is wrong (smolact dataset check --dataset.root={root}), and delete the episodes that are not whole."
        )
    found = RecoveryReport(meta)
    rows = _read_rows(found)
    try:
        meta.tasks = read_tasks_v3(root) if rows else {}
    except DatasetError as error:
        found.errors.append(_cause(error))
        found.tasks_recovered = True
    rows = _check_data(found, rows, quick, progress)
    for key in meta.video_keys:
        rows = _check_videos(found, key, rows, quick, progress)
    found.rows = sorted(rows, key=lambda row: row.number)
    if not rows:
        meta.tasks, found.tasks_recovered = {}, False
    return found


def _read_rows(found: RecoveryReport) -> list[Row]:
    """All rows of `meta/episodes` that can be read, the first of each number."""
    meta, rows = found.meta, dict[int, Row]()
    wanted = [*NAMES, "dataset_from_index", "dataset_to_index"]
    for key in meta.video_keys:
        wanted += [
            f"videos/{key}/{name}" for name in ("chunk_index", "file_index", "from_timestamp", "to_timestamp")
        ]
    for path in sorted((meta.root / layout.EPISODES_FOLDER).glob("*/*.parquet")):
        if path.name.startswith("."):
            continue
        try:
            check_inside(meta.root, path.relative_to(meta.root).as_posix())
            table = read_table(path)
            columns = {name: column_values(read_table(path, wanted), name, path) for name in wanted}
            statistics, more = table_statistics(table, path), table_more(table, path)
        except DatasetError as error:
            found.errors.append(_cause(error))
            continue
        found.table_rows[path] = table.num_rows
        for position in range(table.num_rows):
            value = {name: column[position] for name, column in columns.items()}
            try:
                row = _row(meta, path, position, value, statistics[position], more[position])
            except DatasetError as error:
                found.errors.append(_cause(error))
                continue
            if row.number in rows:
                found.errors.append(f"{path}: episode {row.number} is there twice.")
            rows.setdefault(row.number, row)
    return list(rows.values())


def _row(
    meta: LeRobotDatasetMetadata,
    path: Path,
    position: int,
    value: dict[str, Any],
    statistics: Statistics,
    more: dict[str, Any],
) -> Row:
    problem = f"{path}, row {position}: "
    counts = [name for name in value if name.endswith("_index")] + ["length"]
    whole = {name: layout.whole_number(value[name]) for name in counts}
    if (
        not all(number is not None and 0 <= number < 2**62 for number in whole.values())
        or not whole["length"]
    ):
        raise DatasetError(f"{problem}expected whole numbers, found {[value[name] for name in counts]}.")
    value = {**value, **whole}
    tasks = value["tasks"]
    if not isinstance(tasks, list) or not tasks or not all(isinstance(t, str) and t.strip() for t in tasks):
        raise DatasetError(f"{problem}expected a list of tasks, found {tasks!r:.100}.")
    videos = {}
    for key in meta.video_keys:
        edges = [value[f"videos/{key}/{name}_timestamp"] for name in ("from", "to")]
        if not all(isinstance(edge, (int, float)) and 0 <= edge < 2**40 for edge in edges):
            raise DatasetError(f"{problem}expected seconds in the video of '{key}', found {edges}.")
        first, end = (round(edge * meta.fps) for edge in edges)
        if end - first != value["length"]:
            raise DatasetError(
                f"{problem}episode {value['episode_index']} has {value['length']} rows and {end - first} frames of '{key}'."
            )
        template = meta.info.get("video_path") or layout.VIDEO_PATH
        videos[key] = (_path(meta, template, f"videos/{key}", value, video_key=key), first)
    data = _path(meta, meta.info.get("data_path") or layout.DATA_PATH, "data", value)
    indices = (value["dataset_from_index"], value["dataset_to_index"])
    return Row(
        value["episode_index"],
        value["length"],
        tuple(tasks),
        (path, position),
        data,
        videos,
        indices,
        statistics,
        more,
    )


def _path(
    meta: LeRobotDatasetMetadata, template: Any, prefix: str, value: dict[str, Any], **more: str
) -> str:
    place = {name: value[f"{prefix}/{name}"] for name in ("chunk_index", "file_index")}
    return str(layout.fill_template(template, meta.root / layout.INFO, **more, **place))


def _check_data(found: RecoveryReport, rows: list[Row], quick: bool, progress: Progress) -> list[Row]:
    """Those of the episodes whose data rows are all there, and right."""
    meta, whole, done = found.meta, list[Row](), 0
    names = [name for name, feature in meta.features.items() if feature.dtype != "video"]
    for place, group in _by_file(rows, lambda row: row.data):
        path = meta.root / place
        try:
            check_inside(meta.root, place)
            table = read_table(path, names)
            counters = {name: column_array(table, name, (1,), path).reshape(-1) for name in DEFAULT_FEATURES}
            rows_of = EpisodeRows(table, path)
        except DatasetError as error:
            found.errors.append(f"{_cause(error)} {_named(group)}")
            continue
        found.frames[place] = table.num_rows
        is_in_order = bool((np.diff(counters["index"]) > 0).all())
        for row in sorted(group, key=lambda row: len(row.tasks)):  # one task alone says what its number means
            try:
                part = taken(table, rows_of.of(row.number))
                _check_rows(found, row, part)
                row.in_place &= is_in_order
                if not quick:
                    _check_images(meta, row, part)
                whole.append(row)
            except DatasetError as error:
                found.errors.append(f"{place}, episode {row.number}: {_cause(error)}")
            done += 1
            progress("data", done, len(rows))
    return whole


def _check_rows(found: RecoveryReport, row: Row, part: pa.Table) -> None:
    """Look at the rows of an episode, which are in order of `frame_index`."""
    meta = found.meta
    path = meta.root / row.data
    if part.num_rows != row.length:
        raise DatasetError(f"expected {row.length} rows, found {part.num_rows}.")
    steps = np.arange(row.length)
    values = {name: column_array(part, name, (1,), path).reshape(-1) for name in DEFAULT_FEATURES}
    if (values["frame_index"] != steps).any():
        raise DatasetError("frame_index does not count from 0.")
    late = np.abs(values["timestamp"].astype(np.float64) - steps / meta.fps)
    if not (late <= np.maximum(TIME_TOLERANCE, 1e-6 * steps / meta.fps)).all():
        raise DatasetError(f"its timestamps are not those of {meta.fps:g} frames a second.")
    used = set(values["task_index"].tolist())
    if not used <= meta.tasks.keys():
        if len(used) > 1 or len(row.tasks) > 1:
            raise DatasetError(f"task_index {sorted(used - meta.tasks.keys())[0]} is no task that is known.")
        meta.tasks[used.pop()] = row.tasks[0]
        found.tasks_recovered = True
    for name, feature in meta.features.items():
        if not feature.is_numeric:
            continue
        numbers = column_array(part, name, feature.shape, path)
        if numbers.dtype.kind == "f" and not np.isfinite(numbers).all():
            raise DatasetError(f"'{name}' is not finite.")
    row.in_place = bool((values["index"] == steps + row.edges[0]).all())


def _check_images(meta: LeRobotDatasetMetadata, row: Row, part: pa.Table) -> None:
    for key in meta.image_keys:
        for value in column_values(part.select([key]), key, meta.root / row.data):
            data = value.get("bytes") if isinstance(value, dict) else None
            if meta.features[key].is_depth:
                check_depth_image(data, meta.features[key].image_shape, key)
            else:
                decode_image(data, meta.features[key].image_shape[1:], key)


def _check_videos(
    found: RecoveryReport, key: str, rows: list[Row], quick: bool, progress: Progress
) -> list[Row]:
    """Those of the episodes of which camera `key` has all frames."""
    meta, whole, done = found.meta, list[Row](), 0
    places = sorted({row.videos[key][0] for row in rows})
    inside = [place for place in places if not leads_out(meta.root, meta.root / place)]
    sizes = [size for place in inside if (size := first_size(meta.root, [place])) is not None]
    if sizes and meta.features[key].image_shape[1:] not in sizes:  # then info.json is wrong, not every video
        meta.features[key] = meta.features[key].resized(*sizes[0])
    for place, group in _by_file(rows, lambda row: row.videos[key][0]):
        try:
            check_inside(meta.root, place)
            reader = VideoReader(meta.root / place)
        except DatasetError as error:
            found.errors.append(f"{_cause(error)} {_named(group)}")
            continue
        end = 0
        for row in sorted(group, key=lambda row: (row.videos[key][1], row.number)):
            try:
                end = _check_frames(
                    reader, row, row.videos[key][1], end, meta.features[key].image_shape, quick
                )
                whole.append(row)
            except DatasetError as error:
                found.errors.append(f"{place}, episode {row.number}: {_cause(error)}")
            done += 1
            progress(key, done, len(rows))
        reader.close()
    return whole


def _check_frames(
    reader: VideoReader, row: Row, first: int, before: int, shape: tuple[int, int, int], quick: bool
) -> int:
    end = first + row.length
    if first < before:
        raise DatasetError("its frames are another episode's.")
    if end > len(reader):
        raise DatasetError(f"its frames end at {end}, but the file has {len(reader)}.")
    for start in () if quick else range(first, end, DECODED_AT_ONCE):
        for height, width, _ in reader.layouts(np.arange(start, min(start + DECODED_AT_ONCE, end))):
            if (height, width) != shape[1:]:
                raise DatasetError(f"its frames are {height} × {width}, expected {shape[1]} × {shape[2]}.")
    return end


def _by_file(rows: Iterable[Row], file: Callable[[Row], str]) -> list[tuple[str, list[Row]]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(file(row), []).append(row)
    return list(groups.items())


def _named(rows: list[Row]) -> str:
    """Which episodes."""
    numbers = [row.number for row in rows]
    return f"It has {len(rows)} episodes ({min(numbers)} to {max(numbers)})."


def _cause(error: DatasetError) -> str:
    """What is wrong, without the advice to get the file elsewhere: nobody else has what was just recorded."""
    return str(error).partition(" Fetch ")[0]

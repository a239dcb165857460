"""Find the intact episodes of a damaged dataset: those with all metadata, data rows and video frames.

Nothing is written. Faults that `inspection.py` calls errors make an episode not intact.
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
from smolact.datasets.inspected_files import DECODE_BATCH, TIME_TOLERANCE
from smolact.datasets.metadata import LeRobotDatasetMetadata, read_tasks_v3
from smolact.datasets.path_checks import check_inside, unsafe_paths
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
        number: the episode index.
        table_row: the file of `meta/episodes` and the row's position in it.
        data: the data file, relative to the root.
        videos: camera to video file and first frame in it.
        edges: the stored `dataset_from_index` and `dataset_to_index`.
        more: other tools' columns.
        in_place: whether its data rows are in order and their `index` counts on from `dataset_from_index`.
    """

    number: int
    length: int
    tasks: tuple[str, ...]
    table_row: tuple[Path, int]
    data: str
    videos: dict[str, tuple[str, int]]
    edges: tuple[Any, Any]
    statistics: Statistics
    more: dict[str, Any]
    in_place: bool = True


@dataclass
class RecoveryReport:
    """The recoverable contents of a v3.0 dataset.

    Attributes:
        meta: the features, settings and tasks, completed from the episodes.
        rows: the intact episodes, in order.
        errors: one line for each fault.
        table_rows: file of `meta/episodes` to its number of rows.
        frames: data file to its number of rows.
        tasks_recovered: whether `tasks.parquet` is unreadable or incomplete.
    """

    meta: LeRobotDatasetMetadata
    rows: list[Row] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    table_rows: dict[Path, int] = field(default_factory=dict)
    frames: dict[str, int] = field(default_factory=dict)
    tasks_recovered: bool = False

    def is_in_order(self) -> bool:
        """Whether the intact episodes are a valid dataset in place, so that only `meta` has to be written."""
        positions = [row.table_row for row in self.rows]
        if [row.number for row in self.rows] != list(range(len(positions))) or positions != sorted(positions):
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
    """The intact episodes as a dataset, numbered from 0."""

    def __init__(self, report: RecoveryReport) -> None:
        rows, meta = report.rows, report.meta
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
        # Not `super().__init__`, which needs an intact dataset.
        self.meta, self._open = meta, None
        self._statistics, self._more = [row.statistics for row in rows], [row.more for row in rows]
        self._numbers = [row.number for row in rows]

    def number_in_file(self, episode: int) -> int:
        """The `episode_index` of an episode in its data file."""
        return self._numbers[episode]


class InfoOnlyMetadata(LeRobotDatasetMetadata):
    """The metadata in `info.json` alone."""

    def _read_tables(self) -> None:
        self.tasks, self.stats = {}, {}
        self.episodes = Episodes(np.zeros(0, dtype=np.int64), [], [], {}, {}, {})

    def look_at_files(self) -> None:
        """Check nothing: reading a file checks it, so an unsafe one costs only its own episodes."""


def find_intact_episodes(root: Path, quick: bool = False, progress: Progress = no_progress) -> RecoveryReport:
    """Check every episode in the metadata of the dataset in `root`; `quick` decodes no images.

    Raises:
        NotFoundError: there is no such folder.
        ConfigError: the dataset has an older version.
        DatasetError: `info.json` is missing or damaged, or something in `meta` or a folder must not be opened.
    """
    meta = InfoOnlyMetadata(root)
    for fault in unsafe_paths(root):
        if (root / fault.place).is_dir():  # its files may be intact, and another dataset's
            raise DatasetError(f"{root / fault.place} {fault.message}")
    if meta.codebase_version != layout.WRITTEN_VERSION:
        raise ConfigError(
            f"{root} is a dataset of version {meta.codebase_version}, and only {layout.WRITTEN_VERSION} is mended. See what "
            f"is wrong (smolact dataset check --dataset.root={root}), and delete the episodes that are not whole."
        )
    report = RecoveryReport(meta)
    rows = _read_rows(report)
    try:
        meta.tasks = read_tasks_v3(root) if rows else {}
    except DatasetError as error:
        report.errors.append(_cause(error))
        report.tasks_recovered = True
    rows = _check_data(report, rows, quick, progress)
    for key in meta.video_keys:
        rows = _check_videos(report, key, rows, quick, progress)
    report.rows = sorted(rows, key=lambda row: row.number)
    if not rows:
        meta.tasks, report.tasks_recovered = {}, False
    return report


def _read_rows(report: RecoveryReport) -> list[Row]:
    """All readable rows of `meta/episodes`, without duplicates."""
    meta, rows = report.meta, dict[int, Row]()
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
            report.errors.append(_cause(error))
            continue
        report.table_rows[path] = table.num_rows
        for position in range(table.num_rows):
            values = {name: column[position] for name, column in columns.items()}
            try:
                row = _row(meta, path, position, values, statistics[position], more[position])
            except DatasetError as error:
                report.errors.append(_cause(error))
                continue
            if row.number in rows:
                report.errors.append(f"{path}: episode {row.number} is there twice.")
            rows.setdefault(row.number, row)
    return list(rows.values())


def _row(
    meta: LeRobotDatasetMetadata,
    path: Path,
    position: int,
    values: dict[str, Any],
    statistics: Statistics,
    more: dict[str, Any],
) -> Row:
    prefix = f"{path}, row {position}: "
    counts = [name for name in values if name.endswith("_index")] + ["length"]
    integers = {name: layout.whole_number(values[name]) for name in counts}
    if (
        not all(number is not None and 0 <= number < 2**62 for number in integers.values())
        or not integers["length"]
    ):
        raise DatasetError(f"{prefix}expected whole numbers, found {[values[name] for name in counts]}.")
    values = {**values, **integers}
    tasks = values["tasks"]
    if not isinstance(tasks, list) or not tasks or not all(isinstance(t, str) and t.strip() for t in tasks):
        raise DatasetError(f"{prefix}expected a list of tasks, found {tasks!r:.100}.")
    videos = {}
    for key in meta.video_keys:
        edges = [values[f"videos/{key}/{name}_timestamp"] for name in ("from", "to")]
        if not all(isinstance(edge, (int, float)) and 0 <= edge < 2**40 for edge in edges):
            raise DatasetError(f"{prefix}expected seconds in the video of '{key}', found {edges}.")
        first, end = (round(edge * meta.fps) for edge in edges)
        if end - first != values["length"]:
            raise DatasetError(
                f"{prefix}episode {values['episode_index']} has {values['length']} rows and {end - first} frames of '{key}'."
            )
        template = meta.info.get("video_path") or layout.VIDEO_PATH
        videos[key] = (_path(meta, template, f"videos/{key}", values, video_key=key), first)
    data = _path(meta, meta.info.get("data_path") or layout.DATA_PATH, "data", values)
    indices = (values["dataset_from_index"], values["dataset_to_index"])
    return Row(
        values["episode_index"],
        values["length"],
        tuple(tasks),
        (path, position),
        data,
        videos,
        indices,
        statistics,
        more,
    )


def _path(
    meta: LeRobotDatasetMetadata, template: Any, prefix: str, values: dict[str, Any], **more: str
) -> str:
    indices = {name: values[f"{prefix}/{name}"] for name in ("chunk_index", "file_index")}
    return str(layout.fill_template(template, meta.root / layout.INFO, **more, **indices))


def _check_data(report: RecoveryReport, rows: list[Row], quick: bool, progress: Progress) -> list[Row]:
    """The episodes with complete, valid data rows."""
    meta, intact, done = report.meta, list[Row](), 0
    names = [name for name, feature in meta.features.items() if feature.dtype != "video"]
    for file, group in _by_file(rows, lambda row: row.data):
        path = meta.root / file
        try:
            check_inside(meta.root, file)
            table = read_table(path, names)
            counters = {name: column_array(table, name, (1,), path).reshape(-1) for name in DEFAULT_FEATURES}
            episode_rows = EpisodeRows(table, path)
        except DatasetError as error:
            report.errors.append(f"{_cause(error)} {_episode_range(group)}")
            continue
        report.frames[file] = table.num_rows
        is_in_order = bool((np.diff(counters["index"]) > 0).all())
        for row in sorted(group, key=lambda row: len(row.tasks)):  # a single task identifies its index
            try:
                part = taken(table, episode_rows.of(row.number))
                _check_rows(report, row, part)
                row.in_place &= is_in_order
                if not quick:
                    _check_images(meta, row, part)
                intact.append(row)
            except DatasetError as error:
                report.errors.append(f"{file}, episode {row.number}: {_cause(error)}")
            done += 1
            progress("data", done, len(rows))
    return intact


def _check_rows(report: RecoveryReport, row: Row, part: pa.Table) -> None:
    """Raise a `DatasetError` unless an episode's rows, sorted by `frame_index`, are valid."""
    meta = report.meta
    path = meta.root / row.data
    if part.num_rows != row.length:
        raise DatasetError(f"expected {row.length} rows, found {part.num_rows}.")
    steps = np.arange(row.length)
    values = {name: column_array(part, name, (1,), path).reshape(-1) for name in DEFAULT_FEATURES}
    if (values["frame_index"] != steps).any():
        raise DatasetError("frame_index does not count from 0.")
    deviation = np.abs(values["timestamp"].astype(np.float64) - steps / meta.fps)
    if not (deviation <= np.maximum(TIME_TOLERANCE, 1e-6 * steps / meta.fps)).all():
        raise DatasetError(f"its timestamps are not those of {meta.fps:g} frames a second.")
    used = set(values["task_index"].tolist())
    if not used <= meta.tasks.keys():
        if len(used) > 1 or len(row.tasks) > 1:
            raise DatasetError(f"task_index {sorted(used - meta.tasks.keys())[0]} is no task that is known.")
        meta.tasks[used.pop()] = row.tasks[0]
        report.tasks_recovered = True
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
    report: RecoveryReport, key: str, rows: list[Row], quick: bool, progress: Progress
) -> list[Row]:
    """The episodes with all frames of camera `key`."""
    meta, intact, done = report.meta, list[Row](), 0
    files = sorted({row.videos[key][0] for row in rows})
    inside = [file for file in files if not leads_out(meta.root, meta.root / file)]
    sizes = [size for file in inside if (size := first_size(meta.root, [file])) is not None]
    if sizes and meta.features[key].image_shape[1:] not in sizes:  # info.json is wrong, not every video
        meta.features[key] = meta.features[key].resized(*sizes[0])
    for file, group in _by_file(rows, lambda row: row.videos[key][0]):
        try:
            check_inside(meta.root, file)
            reader = VideoReader(meta.root / file)
        except DatasetError as error:
            report.errors.append(f"{_cause(error)} {_episode_range(group)}")
            continue
        end = 0
        for row in sorted(group, key=lambda row: (row.videos[key][1], row.number)):
            try:
                end = _check_frames(
                    reader, row, row.videos[key][1], end, meta.features[key].image_shape, quick
                )
                intact.append(row)
            except DatasetError as error:
                report.errors.append(f"{file}, episode {row.number}: {_cause(error)}")
            done += 1
            progress(key, done, len(rows))
        reader.close()
    return intact


def _check_frames(
    reader: VideoReader, row: Row, first: int, previous_end: int, shape: tuple[int, int, int], quick: bool
) -> int:
    end = first + row.length
    if first < previous_end:
        raise DatasetError("its frames are another episode's.")
    if end > len(reader):
        raise DatasetError(f"its frames end at {end}, but the file has {len(reader)}.")
    for start in () if quick else range(first, end, DECODE_BATCH):
        for height, width, _ in reader.layouts(np.arange(start, min(start + DECODE_BATCH, end))):
            if (height, width) != shape[1:]:
                raise DatasetError(f"its frames are {height} × {width}, expected {shape[1]} × {shape[2]}.")
    return end


def _by_file(rows: Iterable[Row], file_of: Callable[[Row], str]) -> list[tuple[str, list[Row]]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(file_of(row), []).append(row)
    return list(groups.items())


def _episode_range(rows: list[Row]) -> str:
    """A sentence with the number and range of the episodes."""
    numbers = [row.number for row in rows]
    return f"It has {len(rows)} episodes ({min(numbers)} to {max(numbers)})."


def _cause(error: DatasetError) -> str:
    """The error without the advice to fetch the file again: a new recording has no other copy."""
    return str(error).partition(" Fetch ")[0]

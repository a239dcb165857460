"""Find the intact episodes of a damaged dataset: those with all metadata, data rows and video frames.

Nothing is written. An episode is intact if no error of `state.py` affects it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smolact.datasets import format as layout
from smolact.datasets.episodes import Episode, Episodes, VideoSpan, episode_columns, episode_tables
from smolact.datasets.faults import Fault, Progress, no_progress
from smolact.datasets.metadata import LeRobotDatasetMetadata, first_size, read_numbered
from smolact.datasets.path_checks import check_inside, unsafe_paths
from smolact.datasets.sources import Source, extra_columns, table_statistics
from smolact.datasets.state import DatasetState, frame_number
from smolact.datasets.tables import column_values, read_table
from smolact.errors import ConfigError, DatasetError
from smolact.openable import leads_out
from smolact.types import Statistics


@dataclass(frozen=True)
class RecoverableEpisode(Episode):
    """An episode according to its row of `meta/episodes`, with the stored `dataset_from_index` as its `from_index`.

    Attributes:
        stored_end: the stored `dataset_to_index`.
        table_row: the file of `meta/episodes` and the row's position in it.
        statistics: its statistics; empty if there are none.
        extra_metadata: other tools' columns.
    """

    stored_end: int
    table_row: tuple[Path, int]
    statistics: Statistics
    extra_metadata: dict[str, Any]


@dataclass
class RecoveryReport:
    """The recoverable contents of a v3.0 dataset.

    Attributes:
        meta: the features, settings and tasks, completed from the episodes.
        rows: the intact episodes, in order.
        misnumbered: the episodes whose `index` does not count on from `from_index`.
        errors: one line for each fault.
        table_rows: file of `meta/episodes` to its number of rows.
        frame_numbers: data file to its column `index` (rows,).
        tasks_recovered: whether `tasks.parquet` is unreadable or incomplete.
    """

    meta: LeRobotDatasetMetadata
    rows: list[RecoverableEpisode] = field(default_factory=list)
    misnumbered: set[int] = field(default_factory=set)
    errors: list[str] = field(default_factory=list)
    table_rows: dict[Path, int] = field(default_factory=dict)
    frame_numbers: dict[str, NDArray[Any]] = field(default_factory=dict)
    tasks_recovered: bool = False

    def is_in_order(self) -> bool:
        """Whether the intact episodes are a valid dataset in place, so that only `meta` has to be written."""
        rows, wanted = self.rows, dict[str, int]()
        for row in rows:
            wanted[row.data_path] = wanted.get(row.data_path, 0) + row.length
        ends = np.cumsum([row.length for row in rows]).tolist()
        positions, texts = [row.table_row for row in rows], set(self.meta.tasks.values())
        return (
            [row.index for row in rows] == list(range(len(rows)))
            and positions == sorted(positions)
            and [(row.from_index, row.stored_end) for row in rows] == list(pairwise([0, *ends]))
            and self.misnumbered.isdisjoint(range(len(rows)))
            and all(len(self.frame_numbers[file]) == frames for file, frames in wanted.items())
            and all((np.diff(self.frame_numbers[file]) > 0).all() for file in wanted)
            and all(texts.issuperset(row.tasks) for row in rows)
            and sorted(self.meta.tasks) == list(range(len(self.meta.tasks)))
        )


class RecoveredSource(Source):
    """The intact episodes as a dataset, numbered from 0."""

    def __init__(self, report: RecoveryReport) -> None:
        rows, meta = report.rows, report.meta
        first = {
            key: np.array([frame_number(row.videos[key].from_timestamp, meta.fps) for row in rows])
            for key in meta.video_keys
        }
        lengths = np.array([row.length for row in rows], dtype=np.int64)
        meta.episodes = Episodes(
            lengths,
            [row.tasks for row in rows],
            [row.data_path for row in rows],
            {key: [row.videos[key].path for row in rows] for key in meta.video_keys},
            {key: numbers / meta.fps for key, numbers in first.items()},
            {key: (numbers + lengths) / meta.fps for key, numbers in first.items()},
        )
        meta.total_episodes, meta.total_frames = len(rows), int(lengths.sum())
        # Not `super().__init__`, which needs an intact dataset.
        self.meta, self._open = meta, None
        self._statistics = [row.statistics for row in rows]
        self._extra_metadata = [row.extra_metadata for row in rows]
        self._numbers = [row.index for row in rows]

    def number_in_file(self, episode: int) -> int:
        """The `episode_index` of an episode in its data file."""
        return self._numbers[episode]


class InfoOnlyMetadata(LeRobotDatasetMetadata):
    """The metadata in `info.json` alone."""

    def _read_tables(self) -> None:
        self.tasks, self.stats = {}, {}
        self.episodes = Episodes(np.zeros(0, dtype=np.int64), [], [], {}, {}, {})

    def check_files(self) -> None:
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
        if (root / fault.location).is_dir():  # its files may be intact, and another dataset's
            raise DatasetError(f"{root / fault.location} {fault.message}")
    if meta.codebase_version != layout.WRITTEN_VERSION:
        raise ConfigError(
            f"{root} is a dataset of version {meta.codebase_version}, and only {layout.WRITTEN_VERSION} is mended. See what "
            f"is wrong (smolact dataset check --dataset.root={root}), and delete the episodes that are not whole."
        )
    report = RecoveryReport(meta)
    rows = _read_rows(report)
    try:
        meta.tasks = read_numbered(root / layout.TASKS, "task") if rows else {}
    except DatasetError as error:
        report.errors.append(_cause(str(error)))
        report.tasks_recovered = True
    state = DatasetState(meta, rows, for_repair=True)
    _drop(report, state, state.data_faults(quick, progress))
    for key in meta.video_keys:
        _find_size(meta, key, state.episodes)
        _drop(report, state, state.video_faults(key, quick, progress))
    intact = {episode.index for episode in state.episodes}
    report.rows = sorted((row for row in rows if row.index in intact), key=lambda row: row.index)
    report.frame_numbers = state.frame_numbers
    if not report.rows:
        meta.tasks, report.tasks_recovered = {}, False
    return report


def _drop(report: RecoveryReport, state: DatasetState, faults: Iterable[Fault]) -> None:
    """Drop the episodes that an error affects, and record the errors.

    A wrong `index` only needs a rewrite, and an unknown task is learned if the episode has just one. Rounded depth is kept, since a
    crash can't have rounded it.
    """
    lost, unknown = set[int](), list[Fault]()
    for fault in faults:
        if fault.severity == "warning" or fault.kind == "depth" or not fault.episodes:
            continue
        if fault.kind == "index":
            report.misnumbered.update(fault.episodes)
        elif fault.kind == "task":
            unknown.append(fault)
        else:
            lost.update(fault.episodes)
            report.errors.append(_line(report.meta.root, fault))
    tasks, named = report.meta.tasks, {episode.index: episode.tasks for episode in state.episodes}
    unknown = [fault for fault in unknown if lost.isdisjoint(fault.episodes)]
    for (episode,) in (fault.episodes for fault in unknown):
        numbers, texts = state.task_numbers[episode], named[episode]
        if len(numbers) == len(texts) == 1:
            report.tasks_recovered = True
            tasks.update(dict.fromkeys(numbers - tasks.keys(), texts[0]))
    for fault in unknown:
        if not state.task_numbers[fault.episodes[0]] <= tasks.keys():
            lost.update(fault.episodes)
            report.errors.append(_line(report.meta.root, fault))
    state.episodes = [episode for episode in state.episodes if episode.index not in lost]


def _read_rows(report: RecoveryReport) -> list[RecoverableEpisode]:
    """All readable rows of `meta/episodes`, without duplicates."""
    meta, rows = report.meta, dict[int, RecoverableEpisode]()
    wanted = [*episode_columns(meta.video_keys), "dataset_from_index", "dataset_to_index"]
    for path in episode_tables(meta.root):
        try:
            check_inside(meta.root, path.relative_to(meta.root).as_posix())
            table = read_table(path)
            columns = {name: column_values(read_table(path, wanted), name, path) for name in wanted}
            statistics, extra = table_statistics(table, path), extra_columns(table, path)
        except DatasetError as error:
            report.errors.append(_cause(str(error)))
            continue
        report.table_rows[path] = table.num_rows
        for position in range(table.num_rows):
            values = {name: column[position] for name, column in columns.items()}
            try:
                row = _row(meta, path, position, values, statistics[position], extra[position])
            except DatasetError as error:
                report.errors.append(_cause(str(error)))
                continue
            if row.index in rows:
                report.errors.append(f"{path}: episode {row.index} is there twice.")
            rows.setdefault(row.index, row)
    return list(rows.values())


def _row(
    meta: LeRobotDatasetMetadata,
    path: Path,
    position: int,
    values: dict[str, Any],
    statistics: Statistics,
    extra_metadata: dict[str, Any],
) -> RecoverableEpisode:
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
        first, end = (frame_number(edge, meta.fps) for edge in edges)
        if end - first != values["length"]:
            raise DatasetError(
                f"{prefix}episode {values['episode_index']} has {values['length']} rows and {end - first} frames of '{key}'."
            )
        template = meta.info.get("video_path") or layout.VIDEO_PATH
        videos[key] = VideoSpan(_path(meta, template, f"videos/{key}", values, video_key=key), *edges)
    first = values["dataset_from_index"]
    return RecoverableEpisode(
        values["episode_index"],
        first,
        first + values["length"],
        tuple(tasks),
        _path(meta, meta.info.get("data_path") or layout.DATA_PATH, "data", values),
        videos,
        values["dataset_to_index"],
        (path, position),
        statistics,
        extra_metadata,
    )


def _path(
    meta: LeRobotDatasetMetadata, template: Any, prefix: str, values: dict[str, Any], **fields: str
) -> str:
    indices = {name: values[f"{prefix}/{name}"] for name in ("chunk_index", "file_index")}
    return str(layout.fill_template(template, meta.root / layout.INFO, **fields, **indices))


def _find_size(meta: LeRobotDatasetMetadata, key: str, episodes: Iterable[Episode]) -> None:
    """Take a camera's size from its first readable video if none has the size that `info.json` says."""
    files = sorted({episode.videos[key].path for episode in episodes})
    inside = [file for file in files if not leads_out(meta.root, meta.root / file)]
    sizes = [size for file in inside if (size := first_size(meta.root, [file])) is not None]
    if sizes and meta.features[key].image_shape[1:] not in sizes:
        meta.features[key] = meta.features[key].resized(*sizes[0])


def _line(root: Path, fault: Fault) -> str:
    """A fault in one line, with its place and the affected episodes unless they are obvious."""
    cause, numbers = _cause(fault.problem), fault.episodes
    line = cause if cause.startswith(str(root)) else f"{fault.location}: {cause}"
    if fault.location.endswith(f", episode {numbers[0]}"):
        return line
    several = f"{len(numbers)} episodes ({min(numbers)} to {max(numbers)})"
    return f"{line} This affects {several if len(numbers) > 1 else f'episode {numbers[0]}'}."


def _cause(message: str) -> str:
    """A message without the advice to fetch the file again: a new recording has no other copy."""
    return message.partition(" Fetch ")[0]

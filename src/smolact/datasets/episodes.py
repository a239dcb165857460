"""The table of episodes: their lengths and files."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smolact.datasets import format as layout
from smolact.datasets.tables import column_values, read_table
from smolact.errors import DatasetError

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class VideoSpan:
    """An episode's span in a video file: `path` is relative to the root, times are in seconds."""

    path: str
    from_timestamp: float
    to_timestamp: float


@dataclass(frozen=True)
class Episode:
    """One demonstration: frames `from_index` to `to_index` (exclusive) of the dataset."""

    index: int
    from_index: int
    to_index: int
    tasks: tuple[str, ...]
    data_path: str
    videos: Mapping[str, VideoSpan]

    @property
    def length(self) -> int:
        """The number of frames."""
        return self.to_index - self.from_index


@dataclass(eq=False)
class Episodes(Sequence[Episode]):
    """The table of episodes, stored as columns, a few small arrays even for thousands of episodes.

    Attributes:
        length: (episodes,), the number of frames; `from_index` and `to_index` follow from it.
        tasks: each episode's instructions.
        data_path: each episode's file.
        video_path, from_timestamp, to_timestamp: each episode's span in the video of a camera, by camera.
        tables: file of `meta/episodes` to its number of rows, if the table was read from files.
        file_indices: (chunk, file) of the data and video files, if it was read from files.
        frames_ahead: the frames of episodes that a killed writer put into `meta/episodes` but not into `info.json`.
    """

    length: Ints
    tasks: Sequence[Sequence[str]]
    data_path: Sequence[str]
    video_path: Mapping[str, Sequence[str]]
    from_timestamp: Mapping[str, NDArray[np.float64]]
    to_timestamp: Mapping[str, NDArray[np.float64]]
    tables: Mapping[Path, int] = field(default_factory=dict)
    file_indices: Collection[tuple[int, int]] = ()
    frames_ahead: int = 0

    def __post_init__(self) -> None:
        self.to_index: Ints = np.cumsum(self.length, dtype=np.int64)
        self.from_index: Ints = self.to_index - self.length

    def __len__(self) -> int:
        return len(self.length)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        videos = {
            key: VideoSpan(
                paths[number], float(self.from_timestamp[key][number]), float(self.to_timestamp[key][number])
            )
            for key, paths in self.video_path.items()
        }
        return Episode(
            number,
            int(self.from_index[number]),
            int(self.to_index[number]),
            tuple(self.tasks[number]),
            self.data_path[number],
            videos,
        )

    def files(self) -> set[str]:
        """The data and video files of all episodes, relative to the root."""
        return set(self.data_path).union(*self.video_path.values())


def episode_tables(root: Path) -> list[Path]:
    """The files of `meta/episodes`, in order, without those of interrupted writes."""
    files = sorted((root / layout.EPISODES_FOLDER).glob("*/*.parquet"))
    return [file for file in files if not file.name.startswith(".")]


def episode_columns(video_keys: Sequence[str]) -> list[str]:
    """The columns of `meta/episodes` that locate an episode."""
    names = ["episode_index", "tasks", "length", "data/chunk_index", "data/file_index"]
    spans = ("chunk_index", "file_index", "from_timestamp", "to_timestamp")
    return names + [f"videos/{key}/{name}" for key in video_keys for name in spans]


def read_episodes_v3(root: Path, info: Mapping[str, Any], video_keys: Sequence[str]) -> Episodes:
    """The first `total_episodes` rows of `meta/episodes` of a v3.0 dataset.

    Raises:
        DatasetError: the table is damaged, incomplete, or leads out of the folder.
    """
    folder, total = root / layout.EPISODES_FOLDER, info["total_episodes"]
    names = episode_columns(video_keys)
    columns: dict[str, list[Any]] = {name: [] for name in names}
    tables: dict[Path, int] = {}
    for file in episode_tables(root) if total else []:
        table = read_table(file, names)
        tables[file] = table.num_rows
        for name in names:
            columns[name].extend(column_values(table, name, file))
    # Writers update info.json last: further rows belong to an interrupted write.
    frames_ahead = sum(filter(None, map(layout.whole_number, columns["length"][total:])))
    columns = {name: values[:total] for name, values in columns.items()}
    _check_complete(columns["episode_index"], total, root, folder)

    pairs: set[tuple[int, int]] = set()

    def paths(template: str, prefix: str, **more: str) -> list[str]:
        chunks = _whole_numbers(columns[f"{prefix}/chunk_index"], folder, f"{prefix}/chunk_index").tolist()
        files = _whole_numbers(columns[f"{prefix}/file_index"], folder, f"{prefix}/file_index").tolist()
        filled = {
            (chunk, file): str(
                layout.fill_template(template, root / layout.INFO, **more, chunk_index=chunk, file_index=file)
            )
            for chunk, file in set(zip(chunks, files, strict=True))
        }
        pairs.update(filled)
        return [filled[pair] for pair in zip(chunks, files, strict=True)]

    video_template = info.get("video_path") or layout.VIDEO_PATH
    return Episodes(
        _whole_numbers(columns["length"], folder, "length"),
        _tasks(columns["tasks"], folder),
        paths(info.get("data_path") or layout.DATA_PATH, "data"),
        {key: paths(video_template, f"videos/{key}", video_key=key) for key in video_keys},
        {key: _seconds(columns[f"videos/{key}/from_timestamp"], folder) for key in video_keys},
        {key: _seconds(columns[f"videos/{key}/to_timestamp"], folder) for key in video_keys},
        tables,
        pairs,
        frames_ahead,
    )


def read_episodes_v2(root: Path, info: Mapping[str, Any], video_keys: Sequence[str]) -> Episodes:
    """The episodes of a v2.0 or v2.1 dataset, each in its own files.

    Raises:
        DatasetError: the list is damaged, incomplete, or leads out of the folder.
    """
    source, total = root / layout.EPISODES_V2, info["total_episodes"]
    lines = layout.read_json_lines(source)
    by_index = {layout.whole_number(row.get("episode_index")): row for row in lines}
    numbers = sorted(number for number in by_index if number is not None and 0 <= number < total)
    _check_complete(numbers, total, root, source)
    rows = [by_index[number] for number in numbers]
    length = _whole_numbers([row.get("length") for row in rows], source, "length")
    chunk_size = files_per_chunk(root, info)

    def paths(template: str, **more: str) -> list[str]:
        filled = (
            layout.fill_template(
                template, root / layout.INFO, **more, episode_chunk=number // chunk_size, episode_index=number
            )
            for number in range(total)
        )
        return [str(path) for path in filled]

    video_template = info.get("video_path") or layout.VIDEO_PATH_V2
    return Episodes(
        length,
        _tasks([row.get("tasks") for row in rows], source),
        paths(info.get("data_path") or layout.DATA_PATH_V2),
        {key: paths(video_template, video_key=key) for key in video_keys},
        dict.fromkeys(video_keys, np.zeros(total)),
        dict.fromkeys(video_keys, length / info["fps"]),
    )


def files_per_chunk(root: Path, info: Mapping[str, Any]) -> int:
    """The number of files in a chunk folder.

    Raises:
        DatasetError: `info.json` has something else there.
    """
    chunk_size = info.get("chunks_size", layout.FILES_PER_CHUNK)
    if type(chunk_size) is not int or chunk_size < 1:
        raise DatasetError(
            f"{root / layout.INFO}: chunks_size must be a positive integer, found {chunk_size!r}."
        )
    return chunk_size


def _check_complete(numbers: Sequence[Any], total: int, root: Path, source: Path) -> None:
    if len(numbers) != total or list(numbers) != list(range(total)):
        raise DatasetError(
            f"{root / layout.INFO} says {total} episodes, but {source} lists {len(numbers)} of them (or not in order). "
            "The metadata is damaged or half fetched: fetch the dataset again; or, if a recorder died, keep the episodes that "
            f"are whole: smolact dataset repair --dataset.root={root}"
        )


def _tasks(values: Sequence[Any], source: Path) -> list[tuple[str, ...]]:
    tasks_of_episodes = [tuple(tasks) if isinstance(tasks, list) else () for tasks in values]
    if not all(isinstance(task, str) for tasks in tasks_of_episodes for task in tasks):
        raise DatasetError(f"{source}: 'tasks' must be lists of text. Fetch the dataset again.")
    return tasks_of_episodes


def _whole_numbers(values: Sequence[Any], source: Path, name: str) -> Ints:
    numbers = [layout.whole_number(value) for value in values]
    if not all(number is not None and 0 <= number < 2**62 for number in numbers):
        raise DatasetError(f"{source}: '{name}' must hold whole numbers from 0 up. Fetch the dataset again.")
    return np.array(numbers, dtype=np.int64)


def _seconds(values: Sequence[Any], source: Path) -> NDArray[np.float64]:
    try:
        seconds = np.array(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DatasetError(
            f"{source}: a video's timestamps must be numbers ({error}). Fetch it again."
        ) from error
    if seconds.ndim != 1 or not np.isfinite(seconds).all() or (seconds < 0).any():
        raise DatasetError(
            f"{source}: a video's timestamps must be 0 or more seconds. Fetch the dataset again."
        )
    return seconds

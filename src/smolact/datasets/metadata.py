"""What a dataset says of itself, in any version: one view of `meta/`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smolact.datasets import format as layout
from smolact.datasets.format import Feature
from smolact.datasets.stats import aggregate
from smolact.datasets.tables import read_table
from smolact.errors import DatasetError, NotFoundError, what_is_near
from smolact.types import ACTION, ENVIRONMENT_STATE, STATE, FeatureType, PolicyFeature, Statistics

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class VideoSpan:
    """Where an episode lies in a video file: `path` relative to the root, times in seconds."""

    path: str
    from_timestamp: float
    to_timestamp: float


@dataclass(frozen=True)
class Episode:
    """One demonstration: frames `from_index` (included) to `to_index` of the dataset."""

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


class Episodes(Sequence[Episode]):
    """The table of episodes, kept as columns: thousands of episodes are a few small arrays.

    `length`, `from_index`, `to_index` are (episodes,); `data_path[i]` is the file of episode i; `video_path[key][i]`,
    `from_timestamp[key][i]` and `to_timestamp[key][i]` say where it lies in the video of camera `key`.
    """

    def __init__(
        self,
        length: Ints,
        tasks: Sequence[Sequence[str]],
        data_path: Sequence[str],
        video_path: Mapping[str, Sequence[str]],
        from_timestamp: Mapping[str, NDArray[np.float64]],
        to_timestamp: Mapping[str, NDArray[np.float64]],
    ) -> None:
        self.length = length
        self.to_index: Ints = np.cumsum(length, dtype=np.int64)
        self.from_index: Ints = self.to_index - length
        self.tasks = tasks
        self.data_path = data_path
        self.video_path = video_path
        self.from_timestamp = from_timestamp
        self.to_timestamp = to_timestamp

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

    def __iter__(self) -> Iterator[Episode]:
        return (self[number] for number in range(len(self)))


class LeRobotDatasetMetadata:
    """The metadata of the dataset in folder `root`, whatever its version.

    Attributes:
        info: the whole `meta/info.json`, with the keys that we do not know.
        features: name to `Feature`, in the dataset's order.
        tasks: task index to instruction.
        episodes: the table of episodes.
        stats: feature to statistic to float64 array, over all episodes; images (3, 1, 1) in [0, 1]. Empty if the
            dataset has none.

    Raises:
        NotFoundError: there is no such folder.
        DatasetError: the metadata is missing, damaged, of an unknown version, or leads out of the folder.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise NotFoundError(
                f"The dataset folder {self.root} does not exist. {what_is_near(self.root.absolute())}"
            )
        self._info_path = self.root / layout.INFO
        self.info = _read_info(self._info_path)
        self.codebase_version: str = self.info["codebase_version"]
        self.fps: float = self.info["fps"]
        self.robot_type: str | None = self.info.get("robot_type")
        self.total_episodes: int = self.info["total_episodes"]
        self.total_frames: int = self.info["total_frames"]
        self.features: dict[str, Feature] = {
            name: layout.parse_feature(name, value, self._info_path) for name, value in self.info["features"].items()
        }
        if self.codebase_version == "v3.0":
            self.tasks = _read_tasks_v3(self.root) if self.total_episodes else {}
            self.episodes = self._read_episodes_v3()
            self.stats = _read_stats(self.root / layout.STATS)
        else:
            self.tasks = _read_tasks_v2(self.root)
            self.episodes = self._read_episodes_v2()
            per_episode = self.root / layout.EPISODES_STATS_V21
            self.stats = (
                _read_episode_stats(per_episode, self.total_episodes)
                if per_episode.exists()
                else _read_stats(self.root / layout.STATS)
            )
        self._check_totals()

    @property
    def camera_keys(self) -> list[str]:
        """The cameras, however they are stored."""
        return [name for name, feature in self.features.items() if feature.is_image]

    @property
    def video_keys(self) -> list[str]:
        """The cameras stored as video."""
        return [name for name, feature in self.features.items() if feature.dtype == "video"]

    @property
    def image_keys(self) -> list[str]:
        """The cameras stored as images."""
        return [name for name, feature in self.features.items() if feature.dtype == "image"]

    def policy_features(self) -> tuple[dict[str, PolicyFeature], dict[str, PolicyFeature]]:
        """What a policy can take in and give out: cameras as (3, H, W), state and environment state; the action."""
        inputs = {name: PolicyFeature(FeatureType.VISUAL, self.features[name].image_shape) for name in self.camera_keys}
        for name, kind in ((STATE, FeatureType.STATE), (ENVIRONMENT_STATE, FeatureType.ENV)):
            if name in self.features:
                inputs[name] = PolicyFeature(kind, self.features[name].shape)
        outputs = {
            name: PolicyFeature(FeatureType.ACTION, self.features[name].shape) for name in (ACTION,) if name in self.features
        }
        return inputs, outputs

    def _read_episodes_v3(self) -> Episodes:
        files = sorted((self.root / layout.EPISODES_FOLDER).glob("*/*.parquet")) if self.total_episodes else []
        columns: dict[str, list[Any]] = {}
        wanted = ["episode_index", "tasks", "length", "data/chunk_index", "data/file_index"]
        for key in self.video_keys:
            wanted += [f"videos/{key}/{name}" for name in ("chunk_index", "file_index", "from_timestamp", "to_timestamp")]
        for file in files:
            if file.name.startswith("."):
                continue  # what an interrupted write left behind
            table = read_table(file, wanted)
            for name in wanted:
                columns.setdefault(name, []).extend(table.column(name).to_pylist())
        # A writer names an episode in info.json last: rows beyond that belong to a write that never ended.
        columns = {name: values[: self.total_episodes] for name, values in columns.items()}
        place = self.root / layout.EPISODES_FOLDER
        found = columns.get("episode_index", [])
        if found != list(range(self.total_episodes)):
            raise DatasetError(
                f"{self._info_path} says {self.total_episodes} episodes, but {place} lists {len(found)} "
                "(or not in order). The metadata is damaged or half fetched: fetch the dataset again."
            )
        length = _integers(columns.get("length", []), place, "length")
        video_path, starts, ends = {}, {}, {}
        for key in self.video_keys:
            video_path[key] = self._paths("video_path", layout.VIDEO_PATH, columns, f"videos/{key}", video_key=key)
            starts[key] = _seconds(columns.get(f"videos/{key}/from_timestamp", []), place)
            ends[key] = _seconds(columns.get(f"videos/{key}/to_timestamp", []), place)
        return Episodes(
            length,
            [tuple(tasks or ()) for tasks in columns.get("tasks", [])],
            self._paths("data_path", layout.DATA_PATH, columns, "data"),
            video_path,
            starts,
            ends,
        )

    def _paths(
        self, key: str, default: str, columns: Mapping[str, Sequence[Any]], prefix: str, **more: str
    ) -> list[str]:
        template = self.info.get(key) or default
        place = self.root / layout.EPISODES_FOLDER
        chunks = _integers(columns.get(f"{prefix}/chunk_index", []), place, f"{prefix}/chunk_index").tolist()
        files = _integers(columns.get(f"{prefix}/file_index", []), place, f"{prefix}/file_index").tolist()
        known: dict[tuple[int, int], str] = {}
        for pair in zip(chunks, files, strict=True):
            if pair not in known:
                chunk, file = pair
                filled = layout.fill_template(template, self._info_path, **more, chunk_index=chunk, file_index=file)
                known[pair] = str(filled)
        return [known[pair] for pair in zip(chunks, files, strict=True)]

    def _read_episodes_v2(self) -> Episodes:
        source = self.root / layout.EPISODES_V2
        rows = sorted(layout.read_json_lines(source), key=lambda row: str(row.get("episode_index")).zfill(12))
        rows = rows[: self.total_episodes]
        if [row.get("episode_index") for row in rows] != list(range(self.total_episodes)):
            raise DatasetError(
                f"{self._info_path} says {self.total_episodes} episodes, but {source} lists {len(rows)} (or not all "
                "of them). The metadata is damaged or half fetched: fetch the dataset again."
            )
        length = _integers([row.get("length") for row in rows], source, "length")
        chunk_size = self.info.get("chunks_size", layout.FILES_PER_CHUNK)
        if type(chunk_size) is not int or chunk_size < 1:
            raise DatasetError(f"{self._info_path}: chunks_size must be a positive integer, found {chunk_size!r}.")

        def paths(template: str, **more: str) -> list[str]:
            return [
                str(
                    layout.fill_template(
                        template, self._info_path, **more, episode_chunk=number // chunk_size, episode_index=number
                    )
                )
                for number in range(self.total_episodes)
            ]

        video_template = self.info.get("video_path") or layout.VIDEO_PATH_V2
        return Episodes(
            length,
            [tuple(row.get("tasks") or ()) for row in rows],
            paths(self.info.get("data_path") or layout.DATA_PATH_V2),
            {key: paths(video_template, video_key=key) for key in self.video_keys},
            dict.fromkeys(self.video_keys, np.zeros(len(rows))),
            dict.fromkeys(self.video_keys, length / self.fps),
        )

    def _check_totals(self) -> None:
        frames = int(self.episodes.length.sum())
        if frames != self.total_frames or (self.episodes.length < 1).any():
            raise DatasetError(
                f"{self._info_path} says {self.total_frames} frames, but its episodes have {frames} (each must have "
                "at least one). The metadata is damaged or half fetched: fetch the dataset again."
            )


def _read_info(path: Path) -> dict[str, Any]:
    info = layout.read_json(path)
    problem = f"{path} "
    if not isinstance(info, dict):
        raise DatasetError(f"{problem}must hold a JSON object, found {type(info).__name__}. Fetch the dataset again.")
    version = info.get("codebase_version")
    if version not in layout.VERSIONS:
        raise DatasetError(
            f"{problem}says codebase_version {version!r}; known are {', '.join(layout.VERSIONS)}. "
            "Convert the dataset with the LeRobot that made it, or update smolact."
        )
    fps = info.get("fps")
    if type(fps) not in (int, float) or not 0 < fps < float("inf"):
        raise DatasetError(f"{problem}needs 'fps', frames a second above 0; found {fps!r}. Repair the file.")
    for name in ("total_episodes", "total_frames"):
        if type(info.get(name)) is not int or info[name] < 0:
            raise DatasetError(f"{problem}needs '{name}', a count; found {info.get(name)!r}. Repair the file.")
    if not isinstance(info.get("features"), dict):
        raise DatasetError(f"{problem}needs 'features', a JSON object; found {info.get('features')!r:.100}.")
    return info


def _read_tasks_v2(root: Path) -> dict[int, str]:
    path = root / layout.TASKS_V2
    tasks = {}
    for row in layout.read_json_lines(path):
        if type(row.get("task_index")) is not int or not isinstance(row.get("task"), str):
            raise DatasetError(f"{path}: expected {{task_index, task}}, found {row!r:.200}. Fetch the dataset again.")
        tasks[row["task_index"]] = row["task"]
    return tasks


def _read_tasks_v3(root: Path) -> dict[int, str]:
    path = root / layout.TASKS
    table = read_table(path)
    text = next((name for name in ("task", "__index_level_0__") if name in table.column_names), None)
    if text is None or "task_index" not in table.column_names:
        raise DatasetError(f"{path} has columns {table.column_names}, expected task and task_index. Fetch it again.")
    tasks = dict(zip(table.column("task_index").to_pylist(), table.column(text).to_pylist(), strict=True))
    if not all(type(index) is int and isinstance(task, str) for index, task in tasks.items()):
        raise DatasetError(f"{path} must map task_index (integers) to task (text). Fetch it again.")
    return tasks


def _read_stats(path: Path) -> Statistics:
    return _to_statistics(layout.read_json(path), path) if path.exists() else {}


def _read_episode_stats(path: Path, episodes: int) -> Statistics:
    rows = {row.get("episode_index"): row.get("stats") for row in layout.read_json_lines(path)}
    missing = [number for number in range(episodes) if number not in rows]
    if missing:
        raise DatasetError(
            f"{path} lacks the statistics of {len(missing)} of {episodes} episodes, such as episode {missing[0]}. "
            "It is damaged or half fetched: fetch the dataset again."
        )
    try:
        return aggregate([_to_statistics(rows[number], path) for number in range(episodes)])
    except ValueError as error:
        raise DatasetError(f"{path}: the episodes' statistics differ in shape ({error}). Fetch it again.") from error


def _to_statistics(value: Any, path: Path) -> Statistics:
    try:
        return {
            feature: {name: np.atleast_1d(np.array(number, dtype=np.float64)) for name, number in stats.items()}
            for feature, stats in value.items()
        }
    except (AttributeError, TypeError, ValueError) as error:
        raise DatasetError(
            f"{path}: expected {{feature: {{statistic: numbers}}}} ({error}). Fetch the dataset again."
        ) from error


def _integers(values: Sequence[Any], place: Path, name: str) -> Ints:
    if not all(type(value) is int and 0 <= value < 2**62 for value in values):
        raise DatasetError(f"{place}: '{name}' must hold whole numbers from 0 up. Fetch the dataset again.")
    return np.array(values, dtype=np.int64)


def _seconds(values: Sequence[Any], place: Path) -> NDArray[np.float64]:
    try:
        seconds = np.array(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DatasetError(f"{place}: a video's timestamps must be numbers ({error}). Fetch it again.") from error
    if not np.isfinite(seconds).all() or (seconds < 0).any():
        raise DatasetError(f"{place}: a video's timestamps must be 0 or more seconds. Fetch the dataset again.")
    return seconds

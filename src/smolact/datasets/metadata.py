"""What a dataset says of itself, in any version: one view of `meta/`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from smolact.datasets import format as layout
from smolact.datasets.episodes import read_episodes_v2, read_episodes_v3
from smolact.datasets.format import Feature
from smolact.datasets.stats import aggregate
from smolact.datasets.tables import column_values, read_table
from smolact.errors import DatasetError
from smolact.hub import missing_folder
from smolact.types import ACTION, ENVIRONMENT_STATE, STATE, FeatureType, PolicyFeature, Statistics


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
            raise missing_folder(self.root, "dataset")
        self._info_path = self.root / layout.INFO
        self.info = _read_info(self._info_path)
        self.codebase_version: str = self.info["codebase_version"]
        self.fps: float = self.info["fps"]
        self.robot_type: str | None = self.info.get("robot_type")
        self.total_episodes: int = self.info["total_episodes"]
        self.total_frames: int = self.info["total_frames"]
        described = self.info["features"].items()
        self.features: dict[str, Feature] = {
            **{name: layout.parse_feature(name, value, self._info_path) for name, value in described},
            **{
                name: known
                for name, known in layout.DEFAULT_FEATURES.items()
                if name not in self.info["features"]
            },
        }
        self._read_tables()

    def _read_tables(self) -> None:
        if self.codebase_version == "v3.0":
            self.tasks = read_tasks_v3(self.root) if self.total_episodes else {}
            self.episodes = read_episodes_v3(self.root, self.info, self.video_keys)
            self.stats = read_stats(self.root / layout.STATS)
        else:
            self.tasks = _read_tasks_v2(self.root)
            self.episodes = read_episodes_v2(self.root, self.info, self.video_keys)
            per_episode = self.root / layout.EPISODES_STATS_V21
            self.stats = (
                _read_episode_stats(per_episode, self.total_episodes)
                if per_episode.exists()
                else read_stats(self.root / layout.STATS)
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
        inputs = {
            name: PolicyFeature(FeatureType.VISUAL, self.features[name].image_shape)
            for name in self.camera_keys
        }
        for name, kind in ((STATE, FeatureType.STATE), (ENVIRONMENT_STATE, FeatureType.ENV)):
            if name in self.features:
                inputs[name] = PolicyFeature(kind, self.features[name].shape)
        outputs = {}
        if ACTION in self.features:
            outputs[ACTION] = PolicyFeature(FeatureType.ACTION, self.features[ACTION].shape)
        return inputs, outputs

    def _check_totals(self) -> None:
        frames = int(self.episodes.length.sum())
        if frames != self.total_frames or (self.episodes.length < 1).any():
            raise DatasetError(
                f"{self._info_path} says {self.total_frames} frames, but its episodes have {frames} (each must have "
                "at least one). The metadata is damaged or half fetched: fetch the dataset again; or, if a recorder died, keep the "
                f"episodes that are whole: smolact dataset repair --dataset.root={self.root}"
            )


def _read_info(path: Path) -> dict[str, Any]:
    info = layout.read_json(path, strict=True)
    problem = f"{path} "
    if not isinstance(info, dict):
        raise DatasetError(
            f"{problem}must hold a JSON object, found {type(info).__name__}. Fetch the dataset again."
        )
    version = info.get("codebase_version")
    if version not in layout.VERSIONS:
        raise DatasetError(
            f"{problem}says codebase_version {version!r}; known are {', '.join(layout.VERSIONS)}. "
            "Convert the dataset with the LeRobot that made it, or update smolact."
        )
    fps = info.get("fps")
    if not isinstance(fps, (int, float)) or isinstance(fps, bool) or not 0 < fps < float("inf"):
        raise DatasetError(f"{problem}needs 'fps', frames a second above 0; found {fps!r}. Repair the file.")
    for name in ("total_episodes", "total_frames"):
        if type(info.get(name)) is not int or info[name] < 0:
            raise DatasetError(
                f"{problem}needs '{name}', a count; found {info.get(name)!r}. Repair the file."
            )
    if not isinstance(info.get("features"), dict):
        raise DatasetError(f"{problem}needs 'features', a JSON object; found {info.get('features')!r:.100}.")
    return info


def _read_tasks_v2(root: Path) -> dict[int, str]:
    path = root / layout.TASKS_V2
    tasks = {}
    for row in layout.read_json_lines(path):
        if type(row.get("task_index")) is not int or not isinstance(row.get("task"), str):
            raise DatasetError(
                f"{path}: expected {{task_index, task}}, found {row!r:.200}. Fetch the dataset again."
            )
        tasks[row["task_index"]] = row["task"]
    return tasks


def read_tasks_v3(root: Path) -> dict[int, str]:
    """What `meta/tasks.parquet` says: number to instruction.

    Raises:
        DatasetError: it is not there, or damaged.
    """
    return read_numbered(root / layout.TASKS, "task")


def read_numbered(path: Path, name: str) -> dict[int, str]:
    """What a table of texts says, pandas' index `name` beside a column `{name}_index`: number to text.

    Raises:
        DatasetError: it is not there, or damaged.
    """
    table = read_table(path)
    text = next((known for known in (name, "__index_level_0__") if known in table.column_names), None)
    if text is None or f"{name}_index" not in table.column_names:
        raise DatasetError(
            f"{path} has columns {table.column_names}, expected {name} and {name}_index. Fetch it again."
        )
    numbers, texts = (column_values(table, column, path) for column in (f"{name}_index", text))
    pairs = list(zip(numbers, texts, strict=True))
    if not all(type(number) is int and isinstance(value, str) for number, value in pairs):
        raise DatasetError(f"{path} must map {name}_index (integers) to {name} (text). Fetch it again.")
    return dict(pairs)


def read_stats(path: Path) -> Statistics:
    """What a `stats.json` says; empty if there is none.

    Raises:
        DatasetError: it is damaged.
    """
    return _to_statistics(layout.read_json(path), path) if path.exists() else {}


def _read_episode_stats(path: Path, episodes: int) -> Statistics:
    lines = layout.read_json_lines(path)
    rows = {row["episode_index"]: row.get("stats") for row in lines if type(row.get("episode_index")) is int}
    missing = [number for number in range(episodes) if number not in rows]
    if missing:
        raise DatasetError(
            f"{path} lacks the statistics of {len(missing)} of {episodes} episodes, such as episode {missing[0]}. "
            "It is damaged or half fetched: fetch the dataset again."
        )
    try:
        return aggregate([_to_statistics(rows[number], path) for number in range(episodes)])
    except ValueError as error:
        raise DatasetError(
            f"{path}: the episodes' statistics differ in shape ({error}). Fetch it again."
        ) from error


def _to_statistics(value: Any, path: Path) -> Statistics:
    try:
        return {
            feature: {
                name: np.atleast_1d(np.array(number, dtype=np.float64)) for name, number in stats.items()
            }
            for feature, stats in value.items()
        }
    except (AttributeError, TypeError, ValueError) as error:
        raise DatasetError(
            f"{path}: expected {{feature: {{statistic: numbers}}}} ({error}). Fetch the dataset again."
        ) from error

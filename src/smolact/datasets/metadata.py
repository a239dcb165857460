"""The metadata of a dataset of any version: one view of `meta/`."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from smolact.datasets import format as layout
from smolact.datasets.episodes import read_episodes_v2, read_episodes_v3
from smolact.datasets.format import Feature, as_number, whole_number
from smolact.datasets.path_checks import check_confined
from smolact.datasets.stats import aggregate
from smolact.datasets.tables import column_values, read_table
from smolact.errors import DatasetError, VideoError
from smolact.hub import missing_folder
from smolact.types import ACTION, ENVIRONMENT_STATE, STATE, FeatureType, PolicyFeature, Statistics

logger = logging.getLogger(__name__)

_VERSION = re.compile(r"\s*v?(\d{1,9})(?:\.(\d{1,9}))?(?:[.+-][\w.+-]*|[a-z][\w.+-]*)?\s*", re.IGNORECASE)
_COUNTS = ("total_episodes", "total_frames", "total_tasks", "chunks_size")
_NUMBERS = ("fps", "data_files_size_in_mb", "video_files_size_in_mb")


class LeRobotDatasetMetadata:
    """The metadata of the dataset in folder `root`, of any version.

    Attributes:
        info: the complete `meta/info.json`, including unknown keys.
        codebase_version: the layout version, one of `format.VERSIONS`; `info` has it as written.
        features: name to `Feature`, in the dataset's order.
        tasks: task index to instruction.
        episodes: the table of episodes.
        stats: feature to statistic to float64 array, over all episodes; images (3, 1, 1) in [0, 1]. Empty if the dataset
            has none.

    Raises:
        NotFoundError: the folder does not exist.
        DatasetError: the metadata is missing, corrupt, or of an unknown version; or a file leads out of the folder, or is a
            pipe or a device.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise missing_folder(self.root, "dataset")
        check_confined(self.root, ("meta",))
        self._info_path = self.root / layout.INFO
        self.info = read_info(self._info_path)
        self.codebase_version = version_of(self.info, self._info_path)
        self.fps: float = self.info["fps"]
        self.robot_type: str | None = self.info.get("robot_type")
        self.total_episodes: int = self.info["total_episodes"]
        self.total_frames: int = self.info["total_frames"]
        self.features: dict[str, Feature] = {
            name: layout.parse_feature(name, value, self._info_path)
            for name, value in self.info["features"].items()
        }
        for name, feature in layout.DEFAULT_FEATURES.items():
            self.features.setdefault(name, feature)
        self._read_tables()
        self.check_files()

    def check_files(self) -> None:
        """Check that the present files may be opened, and take each camera's image size from its video.

        If `info.json` has another size, which LeRobot ignores, a warning is logged and the video's size is used.

        Raises:
            DatasetError: a file is a link out of the folder, or not a regular file.
        """
        entries = {file.partition("/")[0] for file in self.episodes.files()}
        check_confined(self.root, {"data", "videos", *entries})
        for key in self.video_keys:
            size = first_size(self.root, self.episodes.video_path[key])
            if size is not None and size != self.features[key].image_shape[1:]:
                warn_of_size_mismatch(self._info_path, key, self.features[key].image_shape[1:], size)
                self.features[key] = self.features[key].resized(*size)

    def stated_size(self, key: str) -> tuple[int, int]:
        """The (height, width) of a camera according to `info.json`."""
        _, height, width = layout.parse_feature(key, self.info["features"][key], self._info_path).image_shape
        return height, width

    def _read_tables(self) -> None:
        if self.codebase_version == "v3.0":
            self.tasks = read_numbered(self.root / layout.TASKS, "task") if self.total_episodes else {}
            self.episodes = read_episodes_v3(self.root, self.info, self.video_keys)
            self.stats = read_stats(self.root / layout.STATS)
        else:
            self.tasks = _read_tasks_v2(self.root)
            self.episodes = read_episodes_v2(self.root, self.info, self.video_keys)
            per_episode = self.root / layout.EPISODES_STATS_V21
            if per_episode.exists():
                self.stats = _aggregated(read_episode_stats(per_episode, self.total_episodes), per_episode)
            else:
                self.stats = read_stats(self.root / layout.STATS)
        self._check_totals()

    @property
    def camera_keys(self) -> list[str]:
        """All cameras, stored as video or images, including depth cameras."""
        return [name for name, feature in self.features.items() if feature.is_image]

    @property
    def color_keys(self) -> list[str]:
        """The color cameras, which policies can use."""
        return [name for name in self.camera_keys if not self.features[name].is_depth]

    @property
    def depth_keys(self) -> list[str]:
        """The depth cameras (see `Feature.is_depth`)."""
        return [name for name in self.camera_keys if self.features[name].is_depth]

    @property
    def video_keys(self) -> list[str]:
        """The cameras stored as video."""
        return [name for name, feature in self.features.items() if feature.dtype == "video"]

    @property
    def image_keys(self) -> list[str]:
        """The cameras stored as images."""
        return [name for name, feature in self.features.items() if feature.dtype == "image"]

    def policy_features(self) -> tuple[dict[str, PolicyFeature], dict[str, PolicyFeature]]:
        """Possible policy inputs (cameras as (3, H, W), state, environment state) and outputs (the action).

        Depth cameras are left out.
        """
        inputs = {
            name: PolicyFeature(FeatureType.VISUAL, self.features[name].image_shape)
            for name in self.color_keys
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


def _read_tasks_v2(root: Path) -> dict[int, str]:
    path = root / layout.TASKS_V2
    tasks = {}
    for row in layout.read_json_lines(path):
        index = whole_number(row.get("task_index"))
        if index is None or not isinstance(row.get("task"), str):
            raise DatasetError(
                f"{path}: expected {{task_index, task}}, found {row!r:.200}. Fetch the dataset again."
            )
        tasks[index] = row["task"]
    return tasks


def read_numbered(path: Path, name: str) -> dict[int, str]:
    """Read a table of texts (pandas index `name`, column `{name}_index`): number to text.

    Raises:
        DatasetError: the file is missing or corrupt.
    """
    table = read_table(path)
    text = next((known for known in (name, "__index_level_0__") if known in table.column_names), None)
    if text is None or f"{name}_index" not in table.column_names:
        raise DatasetError(
            f"{path} has columns {table.column_names}, expected {name} and {name}_index. Fetch it again."
        )
    numbers = [whole_number(value) for value in column_values(table, f"{name}_index", path)]
    texts = column_values(table, text, path)
    if None in numbers or not all(isinstance(value, str) for value in texts):
        raise DatasetError(f"{path} must map {name}_index (integers) to {name} (text). Fetch it again.")
    return {number: value for number, value in zip(numbers, texts, strict=True) if number is not None}


def read_stats(path: Path) -> Statistics:
    """Read a `stats.json`; empty if the file does not exist.

    Raises:
        DatasetError: the file is corrupt.
    """
    return to_statistics(layout.read_json(path), path) if path.exists() else {}


def read_episode_stats(path: Path, episodes: int) -> list[Statistics]:
    """Each episode's statistics in the `episodes_stats.jsonl` of a v2.1 dataset.

    Raises:
        DatasetError: the file is corrupt, or lacks an episode.
    """
    lines = layout.read_json_lines(path)
    rows = {whole_number(row.get("episode_index")): row.get("stats") for row in lines}
    missing = [number for number in range(episodes) if number not in rows]
    if missing:
        raise DatasetError(
            f"{path} lacks the statistics of {len(missing)} of {episodes} episodes, such as episode {missing[0]}. "
            "It is damaged or half fetched: fetch the dataset again."
        )
    return [to_statistics(rows[number], path) for number in range(episodes)]


def _aggregated(episodes: list[Statistics], path: Path) -> Statistics:
    try:
        return aggregate(episodes)
    except ValueError as error:
        raise DatasetError(
            f"{path}: the episodes' statistics differ in shape ({error}). Fetch it again."
        ) from error


def to_statistics(value: Any, path: Path, advice: str = "Fetch the dataset again.") -> Statistics:
    """Convert {feature: {statistic: numbers}} to arrays of at least one dimension.

    Raises:
        DatasetError: `value`, read from the file `path`, is something else.
    """
    try:
        return {
            feature: {
                name: np.atleast_1d(np.array(number, dtype=np.float64)) for name, number in stats.items()
            }
            for feature, stats in value.items()
        }
    except (AttributeError, TypeError, ValueError) as error:
        raise DatasetError(
            f"{path}: expected {{feature: {{statistic: numbers}}}} ({error}). {advice}"
        ) from error


def read_info(path: Path) -> dict[str, Any]:
    """Read `info.json`. Numbers written as text become numbers, and counts such as 1000.0 become integers.

    Raises:
        DatasetError: the file is missing, corrupt, or lacks a required key.
    """
    info = layout.read_json(path, strict=True)
    if not isinstance(info, dict):
        raise DatasetError(
            f"{path} must hold a JSON object, found {type(info).__name__}. Fetch the dataset again."
        )
    info |= {name: count for name in _COUNTS if (count := whole_number(info.get(name))) is not None}
    info |= {name: value for name in _NUMBERS if (value := as_number(info.get(name))) is not None}
    version_of(info, path)
    fps = info.get("fps")
    if not isinstance(fps, (int, float)) or isinstance(fps, bool) or not 0 < fps < float("inf"):
        raise DatasetError(f"{path} needs 'fps', frames a second above 0; found {fps!r}. Repair the file.")
    for name in ("total_episodes", "total_frames"):
        if type(info.get(name)) is not int or info[name] < 0:
            raise DatasetError(f"{path} needs '{name}', a count; found {info.get(name)!r}. Repair the file.")
    if not isinstance(info.get("features"), dict):
        raise DatasetError(f"{path} needs 'features', a JSON object; found {info.get('features')!r:.100}.")
    return info


def version_of(info: dict[str, Any], path: Path) -> str:
    """The layout version, one of `format.VERSIONS`; the major number decides, as in LeRobot.

    Raises:
        DatasetError: the version is older or newer than these, or malformed.
    """
    written = info.get("codebase_version")
    match = _VERSION.fullmatch(written) if isinstance(written, str) else None
    problem = f"{path} says codebase_version {written!r}; known are {', '.join(layout.VERSIONS)}, and later ones of 3."
    if match is None:
        raise DatasetError(f"{problem} Write the version there that the dataset has, or fetch it again.")
    major, minor = int(match[1]), int(match[2] or 0)
    if major < 2:
        raise DatasetError(f"{problem} Convert the dataset with the LeRobot that made it.")
    if major > 3:
        raise DatasetError(f"{problem} A dataset of version {major} needs a newer smolact: update it.")
    return "v3.0" if major == 3 else "v2.1" if minor else "v2.0"


def first_size(root: Path, paths: Iterable[str]) -> tuple[int, int] | None:
    """The (height, width) of the first readable video of `paths`, relative to `root`; None if there is none."""
    from smolact.datasets.remux import open_video

    for path in dict.fromkeys(paths):
        if not (root / path).is_file():
            continue
        try:
            with open_video(root / path) as container:
                context = container.streams.video[0].codec_context
                if 0 < context.height * context.width * 3 <= layout.MAX_VALUES:
                    return context.height, context.width
        except VideoError:  # reported when the file is needed
            continue
    return None


@lru_cache(maxsize=1024)
def warn_of_size_mismatch(info: Path, key: str, declared: tuple[int, int], actual: tuple[int, int]) -> None:
    """Warn, once per process, that a camera's (height, width) in `info.json` differs from its video."""
    logger.warning(
        "%s says that '%s' is %d × %d (height × width), but its video is %d × %d: the video's size is used. smolact dataset compact "
        "writes it into info.json.",
        info,
        key,
        *declared,
        *actual,
    )

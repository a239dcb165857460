"""The layout of a LeRobot dataset on disk, in every version: file names, path templates, columns.

v2.0   one episode per file, meta/stats.json
v2.1   one episode per file, meta/episodes_stats.jsonl
v3.0   many episodes per file, meta/episodes/*/*.parquet
"""

from __future__ import annotations

import contextlib
import math
import re
import string
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from smolact.errors import DatasetError
from smolact.files import parse_json, parse_json_lines, read_bytes

VERSIONS = ("v2.0", "v2.1", "v3.0")
WRITTEN_VERSION = "v3.0"

INFO = "meta/info.json"
STATS = "meta/stats.json"
TASKS = "meta/tasks.parquet"
SUBTASKS = "meta/subtasks.parquet"  # LeRobot before 0.6: the texts of `subtask_index`
SUBTASK_INDEX = "subtask_index"
EPISODES_FOLDER = "meta/episodes"
IMAGE_COUNTS = "meta/smolact_image_counts.json"  # ours: value counts, to continue exact image statistics
RECORDING_LOG = "meta/smolact_recording.json"  # ours: recording details and outcome of each episode
TASKS_V2 = "meta/tasks.jsonl"
EPISODES_V2 = "meta/episodes.jsonl"
EPISODES_STATS_V21 = "meta/episodes_stats.jsonl"

EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
DATA_PATH_V2 = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
VIDEO_PATH_V2 = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"

FILES_PER_CHUNK = 1000
DATA_FILE_MB = 100
VIDEO_FILE_MB = 200

MAX_CHANNELS = 4
MAX_VALUES = 2**26  # of one feature in one frame: more than a 4096 × 4096 RGB image
IMAGE_DTYPES = ("image", "video")
DEPTH_MARKERS = ("is_depth_map", "video.is_depth_map")
"""Keys that mark a depth camera in a feature's `info` or its older `video_info`; the first is the newer name."""
DEPTH_MEANING = ("depth_unit", "video.depth_min", "video.depth_max", "video.shift", "video.use_log")
"""Keys of a depth camera's `info` that define which distance a stored number is."""
NUMBER_DTYPES = (
    *("bool", "float16", "float32", "float64", "int8", "int16", "int32", "int64"),
    *("uint8", "uint16", "uint32", "uint64"),
)
UNITS = "units"  # key of a feature's `info`: the unit of each dimension, such as "degrees"
LANGUAGE_DTYPE = "language"  # LeRobot's annotations: a list of records per frame
STATISTICS = ("min", "max", "mean", "std", "count", "q01", "q10", "q50", "q90", "q99")
QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}


_FEATURE_KEYS = ("dtype", "shape", "names", "info", "video_info")


@dataclass(frozen=True)
class Feature:
    """A column or camera of a dataset, as `info.json` describes it.

    `shape` is that of one frame, without time: (D,) for a vector, (H, W, C) or (C, H, W) for a camera.
    """

    dtype: str
    shape: tuple[int, ...]
    names: Any = None
    info: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Further keys in `info.json`, such as LeRobot's `fps`."""

    @property
    def is_image(self) -> bool:
        """Whether this is a camera, stored as video or as images."""
        return self.dtype in IMAGE_DTYPES

    @property
    def is_depth(self) -> bool:
        """Whether this is a depth camera: marked as such, or with a single channel.

        Its values are distances of more than 8 bits. They are copied, never decoded to images.
        """
        is_marked = any(self.info.get(marker) for marker in DEPTH_MARKERS)
        return self.is_image and (is_marked or 1 in (self.shape[0], self.shape[-1]))

    @property
    def is_numeric(self) -> bool:
        """Whether its values are numbers, which have statistics; text, annotations and unknown dtypes have none."""
        return self.dtype in NUMBER_DTYPES

    @property
    def is_known(self) -> bool:
        """Whether the storage of its dtype is known."""
        return self.is_image or self.is_numeric or self.dtype == "string"

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """A camera's (C, H, W), for either order of `shape`."""
        channels, height, width = self._axes()
        return self.shape[channels], self.shape[height], self.shape[width]

    def resized(self, height: int, width: int) -> Feature:
        """The same camera with another image size."""
        shape = list(self.shape)
        for axis, size in zip(self._axes()[1:], (height, width), strict=True):
            shape[axis] = size
        sizes = {"video.height": height, "video.width": width}
        info = {name: sizes.get(name, value) for name, value in self.info.items()}
        return replace(self, shape=tuple(shape), info=info)

    def _axes(self) -> tuple[int, int, int]:
        """Indices of channels, height and width in a camera's `shape`, determined by the sizes, or else by `names`."""
        names = [name.lower() for name in flat_names(self.names)]
        axes = [name[:1] if name[:1] in "hw" else "c" for name in names]
        named = axes if sorted(axes) == ["c", "h", "w"] else None
        few = [size <= MAX_CHANNELS for size in self.shape]
        if few[0] != few[2]:  # no image is only so few pixels high or wide
            channels = 0 if few[0] else 2
        else:
            channels = 0 if named is not None and named[0] == "c" else 2
        height, width = (axis for axis in range(3) if axis != channels)
        if named is not None and named[channels] == "c" and named[height] == "w":
            height, width = width, height
        return channels, height, width

    @property
    def dimension_names(self) -> list[str]:
        """A name for each dimension of the feature, in order; empty unless `names` gives each a unique one."""
        names = flat_names(self.names)
        return names if len(names) == math.prod(self.shape) and len(set(names)) == len(names) else []

    def to_json(self) -> dict[str, Any]:
        """The feature's entry in `info.json`."""
        value = {"dtype": self.dtype, "shape": list(self.shape), "names": self.names, **self.extra}
        return {**value, "info": dict(self.info)} if self.info else value


DEFAULT_FEATURES = {
    "timestamp": Feature("float32", (1,)),
    "frame_index": Feature("int64", (1,)),
    "episode_index": Feature("int64", (1,)),
    "index": Feature("int64", (1,)),
    "task_index": Feature("int64", (1,)),
}
"""The columns that every dataset has in addition to its own."""


def parse_feature(name: str, value: Any, source: Path) -> Feature:
    """Parse the entry `name` of the `features` in `info.json`.

    Raises:
        DatasetError: the entry lacks a dtype or a shape, or a camera does not have three dimensions.
    """
    problem = f"{source}: feature '{name}' "
    if not isinstance(value, dict) or not isinstance(value.get("dtype"), str):
        raise DatasetError(
            f"{problem}needs a 'dtype' (text); found {value!r:.200}. Repair the file or fetch it again."
        )
    shape = value.get("shape", [1])
    if isinstance(shape, (list, tuple)):
        shape = [size if (integer := whole_number(size)) is None else integer for size in shape]
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise DatasetError(
            f"{problem}needs a 'shape' (a list of sizes); found {shape!r:.200}. Repair the file or fetch it again."
        )
    if value["dtype"] in IMAGE_DTYPES and len(shape) != 3:
        raise DatasetError(
            f"{problem}is a camera and needs three dimensions (height, width, channels); found shape {list(shape)}."
        )
    if math.prod(shape) > MAX_VALUES:
        raise DatasetError(
            f"{problem}has the shape {list(shape)}, more than {MAX_VALUES} values a frame. Repair the file or fetch it again."
        )
    raw_infos = [value.get(name) for name in ("video_info", "info")]  # v2.0 uses the first name
    infos = [item for item in raw_infos if isinstance(item, dict)]
    info = {key: item for mapping in infos for key, item in mapping.items()}
    if any(mapping.get(marker) for mapping in infos for marker in DEPTH_MARKERS):
        info[DEPTH_MARKERS[0]] = True  # any marker suffices
    extra = {key: item for key, item in value.items() if key not in _FEATURE_KEYS}
    return Feature(value["dtype"], tuple(shape), value.get("names"), info, extra)


def fill_template(template: Any, source: Path, **values: int | str) -> PurePosixPath:
    """Fill a `data_path` or `video_path` template of `info.json` with `values`; the path is relative to the dataset's root.

    Raises:
        DatasetError: the template has unknown fields, or leads out of the dataset's folder.
    """
    problem = f"{source}: the path template {template!r:.200} "
    if not isinstance(template, str):
        raise DatasetError(f"{problem}must be text like '{DATA_PATH}'. Repair the file or fetch it again.")
    try:
        fields = list(string.Formatter().parse(template))
    except ValueError as error:
        raise DatasetError(
            f"{problem}is malformed ({error}). Expected something like '{DATA_PATH}'."
        ) from error
    for _, name, spec, conversion in fields:
        if name is not None and (
            name not in values or conversion or not re.fullmatch(r"(0\d)?d?", spec or "")
        ):
            raise DatasetError(
                f"{problem}has the field '{{{name}}}' with format '{spec}': expected {', '.join(values)} "
                "with a format like ':03d'. Repair the file or fetch it again."
            )
    path = template.format(**values)
    windows = PureWindowsPath(path)
    if windows.is_absolute() or windows.drive or windows.root or ".." in windows.parts or "\0" in path:
        raise DatasetError(
            f"{problem}leads to '{path}', out of the dataset's folder. Do not use this dataset: "
            "a proper one only names files below its own root."
        )
    return PurePosixPath(path)


def as_number(value: Any) -> int | float | None:
    """A JSON number, also if it is written as text; None for anything else."""
    if isinstance(value, str):
        for kind in (int, float):
            with contextlib.suppress(ValueError):
                return kind(value)
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def whole_number(value: Any) -> int | None:
    """A whole number, also if it is written as 1000.0 or as text; None for anything else."""
    number = as_number(value)
    return int(number) if number is not None and (type(number) is int or float(number).is_integer()) else None


def flat_names(names: Any) -> list[str]:
    """The names of a feature's dimensions (or axes), in order, from the `names` of `info.json`: a list, a mapping of lists
    ({"motors": [...]}), a mapping of name to index, or any nesting of these; none for null.
    """
    if isinstance(names, Mapping):
        if names and all(type(index) is int for index in names.values()):
            return [str(name) for name in sorted(names, key=lambda name: names[name])]
        return [name for group in names.values() for name in flat_names(group)]
    if isinstance(names, (list, tuple)):
        return [name for group in names for name in flat_names(group)]
    return [] if names is None else [str(names)]


def read_json(path: Path, strict: bool = False) -> Any:
    """The content of a JSON file. NaN and infinity, which Python writes and JSON lacks, are accepted unless `strict`.

    Raises:
        DatasetError: the file is missing or not JSON.
    """
    data = _read(path)
    try:
        return parse_json(data, finite=strict)
    except ValueError as error:
        raise _not_json(path, error) from error


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file.

    Raises:
        DatasetError: the file is missing, or a line is not a JSON object.
    """
    data = _read(path)
    try:
        values = parse_json_lines(data)
    except ValueError as error:
        raise _not_json(path, error) from error
    rows = []
    for number, row in values:
        if not isinstance(row, dict):
            raise DatasetError(
                f"{path}, line {number}: expected a JSON object, found {row!r:.100}. Fetch it again, or mend that line."
            )
        rows.append(row)
    return rows


def _read(path: Path) -> bytes:
    try:
        return read_bytes(path)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise DatasetError(
            f"{path} is missing: this is not a (whole) LeRobot dataset of version {', '.join(VERSIONS)}. "
            "Check the folder, or fetch the dataset again."
        ) from error
    except OSError as error:
        raise DatasetError(f"{path} can't be read ({error.strerror or error}). Restore the file.") from error


def _not_json(path: Path, error: ValueError) -> DatasetError:
    if isinstance(error, UnicodeDecodeError):
        return DatasetError(
            f"{path} is not UTF-8 text (byte {error.start}): it is damaged. Fetch it again, or save it as UTF-8 if it was edited by hand."
        )
    return DatasetError(
        f"{path} is not valid JSON ({error}): it is damaged. Fetch it again, or mend that place if it was edited by hand."
    )

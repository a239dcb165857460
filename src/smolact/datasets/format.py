"""The layout of a LeRobot dataset on disk, in every version: names, path templates, columns. Said once, here.

v2.0   an episode a file, meta/stats.json
v2.1   an episode a file, meta/episodes_stats.jsonl
v3.0   many episodes a file, meta/episodes/*/*.parquet
"""

from __future__ import annotations

import json
import math
import re
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from smolact.errors import DatasetError

VERSIONS = ("v2.0", "v2.1", "v3.0")
WRITTEN_VERSION = "v3.0"

INFO = "meta/info.json"
STATS = "meta/stats.json"
TASKS = "meta/tasks.parquet"
SUBTASKS = "meta/subtasks.parquet"  # LeRobot's before 0.6: what `subtask_index` numbers
SUBTASK_INDEX = "subtask_index"
EPISODES_FOLDER = "meta/episodes"
IMAGE_COUNTS = "meta/smolact_image_counts.json"  # ours: what exact image statistics go on from
RECORDING_LOG = "meta/smolact_recording.json"  # ours: how each episode was recorded, and whether it succeeded
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

MOST_VALUES = 2**26  # of one frame's feature: a picture of 4096 × 4096 in colour, and room to spare
IMAGE_DTYPES = ("image", "video")
NUMBER_DTYPES = (
    *("bool", "float16", "float32", "float64", "int8", "int16", "int32", "int64"),
    *("uint8", "uint16", "uint32", "uint64"),
)
LANGUAGE_DTYPE = "language"  # LeRobot's annotations: a list of records for each frame
STATISTICS = ("min", "max", "mean", "std", "count", "q01", "q10", "q50", "q90", "q99")
QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}


_KNOWN_OF_FEATURE = ("dtype", "shape", "names", "info", "video_info")


@dataclass(frozen=True)
class Feature:
    """A column or camera of a dataset, as `info.json` describes it.

    `shape` is one frame's, without time: (D,) for a vector, (H, W, C) or (C, H, W) for a camera.
    """

    dtype: str
    shape: tuple[int, ...]
    names: Any = None
    info: Mapping[str, Any] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)
    """What else `info.json` says of it, such as LeRobot's `fps`."""

    @property
    def is_image(self) -> bool:
        """Whether this is a camera, stored as video or as images."""
        return self.dtype in IMAGE_DTYPES

    @property
    def is_numeric(self) -> bool:
        """Whether its values are numbers, which have statistics; text, annotations and what we do not know have none."""
        return self.dtype in NUMBER_DTYPES

    @property
    def is_known(self) -> bool:
        """Whether we know how its values are stored."""
        return self.is_image or self.is_numeric or self.dtype == "string"

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """A camera's (C, H, W), whichever order `shape` is in: `names` decides, then which end looks like channels."""
        first, second, third = self.shape
        names = [str(name) for name in self.names] if isinstance(self.names, (list, tuple)) else []
        channels_first = names[0].startswith("channel") if len(names) == 3 else first <= 4 < third
        return (first, second, third) if channels_first else (third, first, second)

    def to_json(self) -> dict[str, Any]:
        """What `info.json` says of this feature."""
        value = {"dtype": self.dtype, "shape": list(self.shape), "names": self.names, **self.more}
        return {**value, "info": dict(self.info)} if self.info else value


DEFAULT_FEATURES = {
    "timestamp": Feature("float32", (1,)),
    "frame_index": Feature("int64", (1,)),
    "episode_index": Feature("int64", (1,)),
    "index": Feature("int64", (1,)),
    "task_index": Feature("int64", (1,)),
}
"""The columns that every dataset has, besides the ones that it is made for."""


def parse_feature(name: str, value: Any, source: Path) -> Feature:
    """The feature `name` of `info.json`.

    Raises:
        DatasetError: the description lacks a dtype or a shape, or a camera has not three dimensions.
    """
    problem = f"{source}: feature '{name}' "
    if not isinstance(value, dict) or not isinstance(value.get("dtype"), str):
        raise DatasetError(
            f"{problem}needs a 'dtype' (text); found {value!r:.200}. Repair the file or fetch it again."
        )
    shape = value.get("shape", [1])
    if not isinstance(shape, (list, tuple)) or not all(type(size) is int and size >= 0 for size in shape):
        raise DatasetError(
            f"{problem}needs a 'shape' (a list of sizes); found {shape!r:.200}. Repair the file or fetch it again."
        )
    if value["dtype"] in IMAGE_DTYPES and len(shape) != 3:
        raise DatasetError(
            f"{problem}is a camera and needs three dimensions (height, width, channels); found shape {list(shape)}."
        )
    if math.prod(shape) > MOST_VALUES:
        raise DatasetError(
            f"{problem}has the shape {list(shape)}, more than {MOST_VALUES} values a frame. Repair the file or fetch it again."
        )
    info = value.get("info") or value.get("video_info") or {}  # v2.0 has the second name
    more = {key: said for key, said in value.items() if key not in _KNOWN_OF_FEATURE}
    info = info if isinstance(info, dict) else {}
    return Feature(value["dtype"], tuple(shape), value.get("names"), info, more)


def fill_template(template: Any, source: Path, **values: int | str) -> PurePosixPath:
    """The path, relative to the dataset's root, that a `data_path` or `video_path` of `info.json` gives for `values`.

    Raises:
        DatasetError: the template has fields that a path can't have, or leads out of the dataset's folder.
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


def read_json(path: Path, strict: bool = False) -> Any:
    """The content of a JSON file; NaN and infinity, which Python writes and JSON has not, pass unless `strict`.

    Raises:
        DatasetError: it is not there, or not JSON.
    """
    return _parse(_read_text(path), path, refused=_refuse if strict else None)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON")


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file.

    Raises:
        DatasetError: it is not there, or a line is not a JSON object.
    """
    rows = []
    for number, line in enumerate(_read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        row = _parse(line, path, number)
        if not isinstance(row, dict):
            raise DatasetError(
                f"{path}, line {number}: expected a JSON object, found {row!r:.100}. Fetch it again."
            )
        rows.append(row)
    return rows


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise DatasetError(
            f"{path} is missing: this is not a (whole) LeRobot dataset of version {', '.join(VERSIONS)}. "
            "Check the folder, or fetch the dataset again."
        ) from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is not UTF-8 text: it is damaged. Fetch it again.") from error


def _parse(
    text: str, path: Path, line: int | None = None, refused: Callable[[str], None] | None = None
) -> Any:
    try:
        return json.loads(text, parse_constant=refused)
    except (ValueError, RecursionError) as error:
        place = f"line {line}: " if line is not None else ""
        raise DatasetError(
            f"{path} is not valid JSON ({place}{error}): it is damaged. Fetch it again."
        ) from error

"""`meta/info.json`: what a dataset says of itself as a whole, in whichever form its version and numbers are written."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from smolact.datasets import format as layout
from smolact.datasets.format import as_number, whole_number
from smolact.errors import DatasetError

_VERSION = re.compile(r"\s*v?(\d{1,9})(?:\.(\d{1,9}))?(?:[.+-][\w.+-]*|[a-z][\w.+-]*)?\s*", re.IGNORECASE)
_COUNTS = ("total_episodes", "total_frames", "total_tasks", "chunks_size")
_NUMBERS = ("fps", "data_files_size_in_mb", "video_files_size_in_mb")


def read_info(path: Path) -> dict[str, Any]:
    """All of `info.json`; numbers that are written as text, or counts as 1000.0, are numbers, and counts whole.

    Raises:
        DatasetError: it is not there, damaged, or lacks what every dataset says.
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
    """Which of `format.VERSIONS` a dataset has the layout of: the major number decides, as in LeRobot.

    Raises:
        DatasetError: it is older or newer than these, or no version at all.
    """
    said = info.get("codebase_version")
    found = _VERSION.fullmatch(said) if isinstance(said, str) else None
    problem = (
        f"{path} says codebase_version {said!r}; known are {', '.join(layout.VERSIONS)}, and later ones of 3."
    )
    if found is None:
        raise DatasetError(f"{problem} Write the version there that the dataset has, or fetch it again.")
    major, minor = int(found[1]), int(found[2] or 0)
    if major < 2:
        raise DatasetError(f"{problem} Convert the dataset with the LeRobot that made it.")
    if major > 3:
        raise DatasetError(f"{problem} A dataset of version {major} needs a newer smolact: update it.")
    return "v3.0" if major == 3 else "v2.1" if minor else "v2.0"

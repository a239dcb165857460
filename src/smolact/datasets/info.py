"""Reads `meta/info.json`, the dataset-wide metadata, in the variants of all versions and number formats."""

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
        raise DatasetError(
            f"{path} needs 'fps', frames a second above 0; found {fps!r}. RepairReport the file."
        )
    for name in ("total_episodes", "total_frames"):
        if type(info.get(name)) is not int or info[name] < 0:
            raise DatasetError(
                f"{path} needs '{name}', a count; found {info.get(name)!r}. RepairReport the file."
            )
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

"""Quarantine files of no episode in the folders `unfinished-001` and so on, next to `data`.

Files are moved by durable renames and never deleted, so a kill leaves each in one of the two places.
"""

from __future__ import annotations

import itertools
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from smolact import durable
from smolact.datasets import format as layout
from smolact.datasets.episodes import Episode
from smolact.openable import leads_out

FOLDER = "unfinished-{number:03d}"
_TEMPORARY_VIDEOS = re.compile(r"tmp[a-z0-9_]{8}")  # where LeRobot encodes an episode


def is_temporary(path: Path) -> bool:
    """Whether an interrupted write left this file."""
    return path.name.startswith(durable.TEMPORARY_PREFIX)


def orphaned_files(root: Path, episodes: Iterable[Episode], tables: Iterable[Path]) -> list[Path]:
    """Files of data, videos and `meta/episodes` that are of no episode or not in `tables`, and those of interrupted writes."""
    used = set(tables)
    for episode in episodes:
        used.update(root / path for path in (episode.data_path, *(v.path for v in episode.videos.values())))
    found = [
        path
        for folder in ("data", "videos", layout.EPISODES_FOLDER)
        if leads_out(root, root / folder) is None
        for path in sorted((root / folder).rglob("*"))
        if path.is_file() and path not in used and (path.suffix in (".parquet", ".mp4") or is_temporary(path))
    ]
    for folder in (root, root / "meta"):
        found += [path for path in sorted(folder.iterdir()) if is_temporary(path)] if folder.is_dir() else []
    return found


def staging_folders(root: Path) -> list[Path]:
    """LeRobot's non-empty folders for the images and videos of an unsaved episode."""
    found = [root / "images", *(path for path in root.iterdir() if _TEMPORARY_VIDEOS.fullmatch(path.name))]
    return sorted(
        path for path in found if path.is_dir() and any(entry.is_file() for entry in path.rglob("*"))
    )


def folders(root: Path) -> list[Path]:
    """The existing quarantine folders."""
    return sorted(path for path in root.glob(FOLDER.format(number=0).replace("000", "*")) if path.is_dir())


def next_folder(root: Path) -> Path:
    """The first free quarantine folder."""
    return first_free(root, FOLDER)


def first_free(folder: Path, name: str) -> Path:
    """The first path in a folder that does not exist, of a name with a `number`."""
    paths = (folder / name.format(number=number) for number in itertools.count(1))
    return next(path for path in paths if not path.exists())


def move(root: Path, paths: Iterable[Path], folder: Path) -> list[Path]:
    """Move files and folders below `root` to the same paths below `folder`; returns the new paths.

    Raises:
        WriteError: the disk refused. The remaining files are not moved.
    """
    targets = []
    with durable.annotate_errors(folder):
        for path in paths:
            target = folder / path.relative_to(root)
            durable.make_folder(target.parent)
            path.replace(target)
            durable.sync_folder(target.parent)
            durable.sync_folder(path.parent)
            targets.append(target)
    return targets


def copy(root: Path, path: Path, folder: Path) -> None:
    """Copy a file, if it exists, to its path below `folder`, before it is rewritten.

    Raises:
        WriteError: the disk is full or refused.
    """
    if path.is_file():
        with durable.replacing_file(folder / path.relative_to(root)) as temporary:
            shutil.copyfile(path, temporary)

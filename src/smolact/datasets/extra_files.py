"""What lies in a dataset's folder and is no part of the format (a licence, GR00T's `modality.json`, notes) goes with every edit."""

from __future__ import annotations

import filecmp
import logging
import os
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

from smolact.datasets import format as layout
from smolact.datasets import quarantine
from smolact.datasets.metadata import LeRobotDatasetMetadata
from smolact.datasets.sources import Source
from smolact.errors import DatasetError
from smolact.openable import leads_out

logger = logging.getLogger(__name__)

MERGED = "merged-from"
"""Where a merged dataset keeps the files of its sources that the first has otherwise."""
_MADE_ANEW = {
    *(layout.INFO, layout.STATS, layout.TASKS, layout.SUBTASKS, layout.TASKS_V2, layout.EPISODES_V2),
    *(layout.EPISODES_STATS_V21, layout.IMAGE_COUNTS, layout.RECORDING_LOG),
}
_KNOWN_IN_INFO = {
    *("codebase_version", "robot_type", "total_episodes", "total_frames", "total_tasks", "total_videos"),
    *("total_chunks", "chunks_size", "data_files_size_in_mb", "video_files_size_in_mb", "fps", "splits"),
    *("data_path", "video_path", "features"),
}


def carry(source: Source, folder: Path, leave: Collection[Path] = ()) -> None:
    """Copy all that is no part of the format from a dataset's folder to the new one, `folder`.

    Args:
        source: the dataset.
        folder: where the new one is built.
        leave: folders of the old one that are not taken along.

    Raises:
        DatasetError: a file can't be read.
    """
    root = source.meta.root
    for path in _others(source.meta, leave):
        copy(root, path, folder / path.relative_to(root))


def carry_all(sources: Collection[Source], folder: Path) -> None:
    """The same of several datasets that become one: what they have alike or only one has comes to its place; where they differ,
    the first one's does, and the others' to a folder of theirs in `merged-from`, with a warning.
    """
    differing: dict[tuple[Path, str], list[str]] = {}
    for number, source in enumerate(sources):
        root = source.meta.root
        own = f"{MERGED}/{number}-{root.resolve().name}"
        paths = list(_others(source.meta, work_in_folder(root)))
        if number and _says_more(source.meta, next(iter(sources)).meta):
            paths.append(root / layout.INFO)
        for path in paths:
            place = path.relative_to(root)
            target = folder / place
            if (
                place.as_posix() == layout.INFO
                or _is_blocked(folder, target)
                or (os.path.lexists(target) and not _same(path, target))
            ):
                differing.setdefault((root, own), []).append(place.as_posix())
                target = folder / own / place
            copy(root, path, target)
    for (root, own), places in differing.items():
        logger.warning(
            "%s: %s differ from those of the first dataset, and are kept in %s of the new one. See which you need.",
            root,
            ", ".join(places[:5]) + (f" and {len(places) - 5} more" if len(places) > 5 else ""),
            own,
        )


def work_in_folder(root: Path) -> list[Path]:
    """What belongs to a dataset's folder rather than to the dataset: what recorders left there, `.git`, a download's `.cache`."""
    hidden = [path for path in root.iterdir() if path.name.startswith(".") and path.is_dir()]
    return [*quarantine.folders(root), *quarantine.staging_folders(root), *hidden]


def copy(root: Path, path: Path, target: Path) -> None:
    """Copy a file, folder or link. What a link leads to is copied if the Hub's cache keeps it there; other links stay links.

    Raises:
        DatasetError: it can't be read.
    """
    if path.is_symlink():
        inside = leads_out(root, path) is None
        if not (inside and path.is_file() and not path.resolve().is_relative_to(root.resolve())):
            target.parent.mkdir(parents=True, exist_ok=True)
            if not os.path.lexists(target):
                target.symlink_to(path.readlink())
            return
    if path.is_dir():
        target.mkdir(parents=True, exist_ok=True)
        return
    if not path.is_file():
        logger.warning("%s is no regular file, and is not taken along.", path)
        return
    if not os.access(path, os.R_OK):
        raise DatasetError(f"{path} can't be read, and an edit takes it along. See to its permissions.")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(path, target)


def _others(meta: LeRobotDatasetMetadata, leave: Collection[Path]) -> Iterator[Path]:
    """All files, links and folders of a dataset that an edit does not make anew."""
    root, table = meta.root, meta.episodes
    made = set(table.data_path).union(*table.video_path.values())
    for parent, folders, files in os.walk(root, onerror=_refuse):
        here = Path(parent)
        kept = [name for name in sorted(folders) if not _is_left(here / name, leave)]
        links = [name for name in kept if (here / name).is_symlink()]
        folders[:] = [name for name in kept if name not in links]
        links = [name for name in links if not _is_of_format((here / name).relative_to(root))]
        for name in (*folders, *links, *sorted(files)):
            path = here / name
            place = path.relative_to(root)
            if name in folders:
                if not _is_of_format(place / "any"):
                    yield path
            elif not (place.as_posix() in made or _is_left(path, leave) or _is_made_anew(place)):
                yield path


def _refuse(error: OSError) -> None:
    raise DatasetError(
        f"{error.filename} can't be read, and an edit takes it along. See to its permissions."
    ) from error


def _is_left(path: Path, leave: Collection[Path]) -> bool:
    return path in leave or quarantine.is_temporary(path)


def _is_of_format(place: Path) -> bool:
    return place.parts[0] in ("data", "videos", "meta")


def _is_made_anew(place: Path) -> bool:
    """Whether an edit writes this, or leaves it out because it is of no episode."""
    if place.as_posix() in _MADE_ANEW:
        return True
    of_episodes = place.parts[0] in ("data", "videos") or place.as_posix().startswith(layout.EPISODES_FOLDER)
    return of_episodes and place.suffix in (".parquet", ".mp4")


def _is_blocked(folder: Path, target: Path) -> bool:
    above = [parent for parent in target.parents if parent != folder and parent.is_relative_to(folder)]
    return any(parent.is_symlink() or parent.is_file() for parent in above)


def _same(path: Path, target: Path) -> bool:
    if target.is_symlink():
        return path.is_symlink() and path.readlink() == target.readlink()
    if path.is_dir() and target.is_dir():
        return True
    return path.is_file() and target.is_file() and filecmp.cmp(path, target, shallow=False)


def _says_more(meta: LeRobotDatasetMetadata, first: LeRobotDatasetMetadata) -> bool:
    """Whether `info.json` has something that we do not know, and the first dataset's has otherwise."""
    unknown = meta.info.keys() - _KNOWN_IN_INFO
    return any(name in first.info and first.info[name] != meta.info[name] for name in unknown)

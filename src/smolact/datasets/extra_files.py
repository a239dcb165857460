"""Carry files outside the format (a licence, GR00T's `modality.json`, notes) through edits."""

from __future__ import annotations

import filecmp
import logging
import os
import shutil
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from smolact.datasets import format as layout
from smolact.datasets import quarantine
from smolact.datasets.metadata import LeRobotDatasetMetadata
from smolact.datasets.sources import Source
from smolact.errors import DatasetError
from smolact.openable import leads_out

logger = logging.getLogger(__name__)

MERGED = "merged-from"
"""A merged dataset's folder for files that differ from the first source's."""
_REWRITTEN = {
    *(layout.INFO, layout.STATS, layout.TASKS, layout.SUBTASKS, layout.TASKS_V2, layout.EPISODES_V2),
    *(layout.EPISODES_STATS_V21, layout.IMAGE_COUNTS, layout.RECORDING_LOG),
}
_INFO_KEYS = {
    *("codebase_version", "robot_type", "total_episodes", "total_frames", "total_tasks", "total_videos"),
    *("total_chunks", "chunks_size", "data_files_size_in_mb", "video_files_size_in_mb", "fps", "splits"),
    *("data_path", "video_path", "features"),
}


def copy_extra_files(
    sources: Sequence[Source], folder: Path, excluded: Collection[Path] | None = None
) -> None:
    """Copy the extra files of datasets to the new `folder`, without the `excluded` folders (the `workspace_paths` when None).

    Of merged datasets, those that differ from an earlier dataset's go below `merged-from`, with a warning.

    Raises:
        DatasetError: a file can't be read.
    """
    differing: dict[tuple[Path, str], list[str]] = {}
    for number, source in enumerate(sources):
        root = source.meta.root
        subfolder = f"{MERGED}/{number}-{root.resolve().name}"
        paths = list(_extra_paths(source.meta, workspace_paths(root) if excluded is None else excluded))
        if number and _has_conflicting_info(source.meta, sources[0].meta):
            paths.append(root / layout.INFO)
        for path in paths:
            relative = path.relative_to(root)
            target = folder / relative
            if (
                relative.as_posix() == layout.INFO
                or _is_blocked(folder, target)
                or (os.path.lexists(target) and not _same(path, target))
            ):
                differing.setdefault((root, subfolder), []).append(relative.as_posix())
                target = folder / subfolder / relative
            copy(root, path, target)
    for (root, subfolder), files in differing.items():
        logger.warning(
            "%s: %s differ from those of the first dataset, and are kept in %s of the new one. See which you need.",
            root,
            ", ".join(files[:5]) + (f" and {len(files) - 5} more" if len(files) > 5 else ""),
            subfolder,
        )


def workspace_paths(root: Path) -> list[Path]:
    """Paths that are not part of the dataset: leftovers of recorders, `.git`, a download's `.cache`."""
    hidden = [path for path in root.iterdir() if path.name.startswith(".") and path.is_dir()]
    return [*quarantine.folders(root), *quarantine.staging_folders(root), *hidden]


def copy(root: Path, path: Path, target: Path) -> None:
    """Copy a file, folder or link. A link into the Hub's cache is copied as a file; other links stay links.

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


def _extra_paths(meta: LeRobotDatasetMetadata, excluded: Collection[Path]) -> Iterator[Path]:
    """All files, links and folders that an edit does not rewrite."""
    root, used = meta.root, meta.episodes.files()

    def is_excluded(path: Path) -> bool:
        return path in excluded or quarantine.is_temporary(path)

    for parent, folders, files in os.walk(root, onerror=_raise_unreadable):
        folder = Path(parent)
        included = [name for name in sorted(folders) if not is_excluded(folder / name)]
        links = [name for name in included if (folder / name).is_symlink()]
        folders[:] = [name for name in included if name not in links]
        links = [name for name in links if not _is_of_format((folder / name).relative_to(root))]
        for name in (*folders, *links, *sorted(files)):
            path = folder / name
            relative = path.relative_to(root)
            if name in folders:
                if not _is_of_format(relative / "any"):
                    yield path
            elif not (relative.as_posix() in used or is_excluded(path) or _is_rewritten(relative)):
                yield path


def _raise_unreadable(error: OSError) -> None:
    raise DatasetError(
        f"{error.filename} can't be read, and an edit takes it along. See to its permissions."
    ) from error


def _is_of_format(relative: Path) -> bool:
    return relative.parts[0] in ("data", "videos", "meta")


def _is_rewritten(relative: Path) -> bool:
    """Whether an edit rewrites the file, or drops it as orphaned."""
    if relative.as_posix() in _REWRITTEN:
        return True
    episodic = relative.parts[0] in ("data", "videos") or relative.as_posix().startswith(
        layout.EPISODES_FOLDER
    )
    return episodic and relative.suffix in (".parquet", ".mp4")


def _is_blocked(folder: Path, target: Path) -> bool:
    parents = [parent for parent in target.parents if parent != folder and parent.is_relative_to(folder)]
    return any(parent.is_symlink() or parent.is_file() for parent in parents)


def _same(path: Path, target: Path) -> bool:
    if target.is_symlink():
        return path.is_symlink() and path.readlink() == target.readlink()
    if path.is_dir() and target.is_dir():
        return True
    return path.is_file() and target.is_file() and filecmp.cmp(path, target, shallow=False)


def _has_conflicting_info(meta: LeRobotDatasetMetadata, first: LeRobotDatasetMetadata) -> bool:
    """Whether an unknown key of `info.json` has another value in the first dataset."""
    unknown = meta.info.keys() - _INFO_KEYS
    return any(name in first.info and first.info[name] != meta.info[name] for name in unknown)

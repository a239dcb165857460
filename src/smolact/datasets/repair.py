"""A dataset that a crash of any writer has left becomes whole again: of the episodes that are wholly there.

If these are a dataset as they lie there, only `meta` is written; else the dataset is made anew beside and takes the old
one's place. What is not theirs is put aside, and nothing is deleted. A kill leaves the dataset as it was, repaired, or so
that another repair goes on: what it is, is `info.json`'s to say, which is written last.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from smolact import durable
from smolact.datasets import edit, quarantine, splits
from smolact.datasets import format as layout
from smolact.datasets.faults import Progress, no_progress
from smolact.datasets.lock import FolderLock
from smolact.datasets.metadata import read_stats
from smolact.datasets.recovery import RecoveredSource, RecoveryReport, find_intact_episodes
from smolact.datasets.rewrite import exchange, restore, warn_of_leftovers
from smolact.datasets.rewritten_metadata import plain
from smolact.datasets.rewritten_statistics import file_statistics
from smolact.datasets.stats import aggregate
from smolact.datasets.tables import read_table, tasks_table
from smolact.errors import ConfigError, DatasetError
from smolact.hub import is_snapshot
from smolact.types import Statistics


@dataclass(frozen=True)
class Repair:
    """What was found of a dataset, and what was done (or, as a dry run, would be).

    Attributes:
        root: its folder.
        told: how many episodes `info.json` had counted.
        episodes: how many are whole.
        frames: how many frames they have.
        lost: what was wrong with others, a line each.
        needed: whether there was anything to do.
        anew: whether the whole dataset had to be made anew.
        files, bytes: how many files were put aside.
        folders: where they are now.
        restored: an edit had been killed, and the dataset as it was before it was put back.
    """

    root: Path
    told: int
    episodes: int
    frames: int
    errors: tuple[str, ...]
    needed: bool
    anew: bool
    files: int
    bytes: int
    folders: tuple[Path, ...]
    restored: bool


def repair(
    root: str | Path, dry_run: bool = False, quick: bool = False, progress: Progress = no_progress
) -> Repair:
    """Make the dataset (v3.0) in the folder `root` whole again; on a whole dataset it does nothing.

    Args:
        root: the folder.
        dry_run: only look.
        quick: decode no pictures.
        progress: told of each episode.

    Raises:
        NotFoundError: there is no such folder.
        ConfigError: it is of an older version, or belongs to the Hub's cache.
        DatasetError: `info.json` is not there or damaged.
        WriteError: another process writes to it; or the disk is full or refused: run it again when it is mended.
    """
    root = Path(root)
    restored = durable.replacement_interrupted(root)
    if restored and dry_run:
        folder = durable.backup_path(root)
    else:
        restore(root)
        folder = root
    if folder.is_dir():
        folder = folder.resolve()
    if is_snapshot(folder):
        raise ConfigError(
            f"{root} is a copy that the Hub's cache keeps. Fetch the dataset again, or copy it elsewhere."
        )
    with FolderLock(folder):
        found = find_intact_episodes(folder, quick, progress)
        old = durable.backup_path(folder)
        before = [old] if not restored and (old / layout.INFO).is_file() else []  # an edit died at its end
        work = _Work(found)
        files = [path for entry in (*before, *work.set_aside()) for path in _files(entry)]
        size = sum(path.lstat().st_size for path in files)  # before they move
        folders: list[Path] = []
        if not dry_run:
            folders += [_put_beside(folder, path) for path in before]
            if work.anew:
                folders.append(_put_beside(folder, _rewrite(found, folder, quick, progress)))
            elif work.is_needed():
                folders += work.write_metadata()
    if dry_run or not work.anew:
        warn_of_leftovers(folder)
    return Repair(
        root,
        found.meta.info["total_episodes"],
        len(found.rows),
        sum(row.length for row in found.rows),
        tuple(found.errors),
        bool(before) or work.is_needed() or restored,
        work.anew,
        len(files),
        size,
        tuple(folders),
        restored,
    )


class _Work:
    """What has to be done in the folder of a dataset."""

    def __init__(self, found: RecoveryReport) -> None:
        self.found, self.root, rows = found, found.meta.root, found.rows
        self.tables: dict[Path, list[int]] = {}
        for row in rows:
            self.tables.setdefault(row.place[0], []).append(row.place[1])
        used = {self.root / row.data for row in rows} | set(self.tables)
        used |= {self.root / video for row in rows for video, _ in row.videos.values()}
        self.orphaned_files = [
            *quarantine.orphaned_files(self.root, used),
            *quarantine.staging_folders(self.root),
        ]
        if not rows:
            known = (self.root / name for name in (layout.TASKS, layout.STATS, layout.IMAGE_COUNTS))
            self.orphaned_files += [path for path in known if path.exists()]
        self.cut = {path: kept for path, kept in self.tables.items() if len(kept) < found.table_rows[path]}
        self.info = self._info()
        self.stats = self._statistics()
        self.anew = not found.is_in_order() or (self.stats is not None and not self._are_known())

    def is_needed(self) -> bool:
        return bool(
            self.anew
            or self.orphaned_files
            or self.cut
            or self.found.tasks_recovered
            or self.stats is not None
            or self.info != self.found.meta.info
        )

    def set_aside(self) -> list[Path]:
        """What will not be where it was."""
        return [self.root] if self.anew else [*self.orphaned_files, *self.cut]

    def write_metadata(self) -> list[Path]:
        """Put aside what is in no episode, and write what `meta` has to say, `info.json` last."""
        folder, meta = quarantine.next_folder(self.root), self.found.meta
        for path, kept in self.cut.items():
            quarantine.copy(self.root, path, folder)
            with durable.replacing_file(path) as temporary:
                pq.write_table(read_table(path).take(kept), temporary, compression="snappy")
        quarantine.move(self.root, self.orphaned_files, folder)
        if self.found.tasks_recovered:
            self._keep(self.root / layout.TASKS, folder)
            with durable.replacing_file(self.root / layout.TASKS) as temporary:
                pq.write_table(tasks_table([meta.tasks[number] for number in sorted(meta.tasks)]), temporary)
        if self.stats is not None:
            self._keep(self.root / layout.STATS, folder)
            durable.write_json(self.root / layout.STATS, plain(self.stats))
        if self.info != meta.info:
            self._keep(self.root / layout.INFO, folder)
            durable.write_json(self.root / layout.INFO, self.info)
        return [folder] if folder.exists() else []

    def _keep(self, path: Path, folder: Path) -> None:
        if path.is_file():
            quarantine.copy(self.root, path, folder)

    def _info(self) -> dict[str, Any]:
        before, rows = self.found.meta.info, self.found.rows
        counts = {"total_episodes": len(rows), "total_frames": sum(row.length for row in rows)}
        tasks = len(self.found.meta.tasks)
        if (
            counts.items() <= before.items()
            and before.get("total_tasks", tasks) in range(tasks + 1)
            and not self.found.tasks_recovered
        ):
            return before
        told = {"total_tasks": tasks, "splits": splits.subset(before, [row.number for row in rows])}
        return {**before, **counts, **told}

    def _statistics(self) -> Statistics | None:
        """What `stats.json` should say; None if it is right as far as a crash can tell."""
        if not self.found.rows:
            return None
        try:
            there = read_stats(self.root / layout.STATS)
        except DatasetError:
            there = {}
        counts = [there.get(name, {}).get("count") for name in ("index", "timestamp")]
        fits = all(count is not None and (count == self.info["total_frames"]).all() for count in counts)
        if there and (fits or self.info == self.found.meta.info):
            return None
        if not self._are_known():
            return {}
        places = list(dict.fromkeys(row.data for row in self.found.rows))
        try:
            together = aggregate([row.statistics for row in self.found.rows])
            return together | file_statistics(self.root, places, self.found.meta.features)
        except ValueError as error:
            raise DatasetError(
                f"{self.root}: the episodes' statistics differ in shape ({error}). Nothing was changed. Make the dataset anew "
                "with the tool that made it."
            ) from error

    def _are_known(self) -> bool:
        """Whether the rows of `meta/episodes` say enough to compute the statistics of all."""
        wanted = [
            name
            for name, feature in self.found.meta.features.items()
            if (feature.is_image or feature.is_numeric) and not feature.is_depth
        ]
        return all(
            {"min", "max", "mean", "std", "count"} <= row.statistics.get(name, {}).keys()
            and all(np.isfinite(value).all() for value in row.statistics[name].values())
            for row in self.found.rows
            for name in wanted
        )


def _rewrite(found: RecoveryReport, root: Path, quick: bool, progress: Progress) -> Path:
    """Make the dataset of the whole episodes and put it in place; returns where the old one is now."""
    plan, leave = edit.whole(RecoveredSource(found)), quarantine.staging_folders(root)
    return exchange(plan, quick, progress, leave, advice="stop it")


def _put_beside(root: Path, old: Path) -> Path:
    """Give the folder `old` a name that says that it is put aside, for good."""
    number = 1
    while (target := root.with_name(f"{root.name}.aside-{number:03d}")).exists():
        number += 1
    with durable.annotate_errors(target):
        old.rename(target)
        durable.sync_folder(target.parent)
    return target


def _files(path: Path) -> Iterator[Path]:
    return (entry for entry in path.rglob("*") if entry.is_file()) if path.is_dir() else iter((path,))

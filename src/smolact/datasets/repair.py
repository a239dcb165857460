"""Repair a dataset after a crash of any writer, to one of all intact episodes.

If these are valid in place, only `meta` is written; otherwise the dataset is rewritten and exchanged with the old one. Other files
are quarantined, never deleted. `info.json` is written last, so after a kill another repair can finish.
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
from smolact.datasets.rewritten_statistics import file_statistics
from smolact.datasets.stats import aggregate, statistics_to_json
from smolact.datasets.tables import read_table, tasks_table
from smolact.errors import ConfigError, DatasetError
from smolact.hub import is_snapshot
from smolact.types import Statistics


@dataclass(frozen=True)
class RepairReport:
    """The result of a repair, or of a dry run.

    Attributes:
        counted: the number of episodes in the old `info.json`.
        episodes, frames: the numbers of intact episodes and of their frames.
        errors: one line for each fault.
        needed: whether a repair was needed.
        files, bytes: the number and size of the quarantined files.
        restored: whether the backup of a killed edit was restored.
    """

    root: Path
    counted: int
    episodes: int
    frames: int
    errors: tuple[str, ...]
    needed: bool
    rewritten: bool
    """Whether the dataset had to be rewritten."""
    files: int
    bytes: int
    folders: tuple[Path, ...]
    restored: bool


def repair(
    root: str | Path, dry_run: bool = False, quick: bool = False, progress: Progress = no_progress
) -> RepairReport:
    """Repair the v3.0 dataset in the folder `root`; an intact dataset is not changed.

    Args:
        quick: decode no images.
        progress: called after each episode.

    Raises:
        NotFoundError: there is no such folder.
        ConfigError: the dataset has an older version, or belongs to the Hub's cache.
        DatasetError: `info.json` is missing or damaged.
        WriteError: another process writes to the dataset, or the disk is full or refused; then repair again.
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
        report = find_intact_episodes(folder, quick, progress)
        backup = durable.backup_path(folder)
        backups = [backup] if not restored and (backup / layout.INFO).is_file() else []  # of a killed edit
        plan = _RepairPlan(report)
        files = [path for entry in (*backups, *plan.quarantined()) for path in _files_below(entry)]
        size = sum(path.lstat().st_size for path in files)  # before the files move
        folders: list[Path] = []
        if not dry_run:
            folders += [_rename_aside(folder, path) for path in backups]
            if plan.rewrites:
                folders.append(_rename_aside(folder, _rewrite(report, folder, quick, progress)))
            elif plan.is_needed():
                folders += plan.write_metadata()
    if dry_run or not plan.rewrites:
        warn_of_leftovers(folder)
    return RepairReport(
        root,
        report.meta.info["total_episodes"],
        len(report.rows),
        sum(row.length for row in report.rows),
        tuple(report.errors),
        bool(backups) or plan.is_needed() or restored,
        plan.rewrites,
        len(files),
        size,
        tuple(folders),
        restored,
    )


class _RepairPlan:
    """The files that a repair writes and quarantines."""

    def __init__(self, report: RecoveryReport) -> None:
        self.report, self.root, rows = report, report.meta.root, report.rows
        self.tables: dict[Path, list[int]] = {}
        for row in rows:
            self.tables.setdefault(row.table_row[0], []).append(row.table_row[1])
        self.orphaned_files = [
            *quarantine.orphaned_files(self.root, rows, self.tables),
            *quarantine.staging_folders(self.root),
        ]
        if not rows:
            summaries = (self.root / name for name in (layout.TASKS, layout.STATS, layout.IMAGE_COUNTS))
            self.orphaned_files += [path for path in summaries if path.exists()]
        self.partial = {
            path: intact for path, intact in self.tables.items() if len(intact) < report.table_rows[path]
        }
        self.info = self._new_info()
        in_order = report.is_in_order()
        self.stats = self._new_statistics() if in_order else None  # a rewrite computes its own
        self.rewrites = not in_order or (self.stats is not None and not self._has_statistics())

    def is_needed(self) -> bool:
        return bool(
            self.rewrites
            or self.orphaned_files
            or self.partial
            or self.report.tasks_recovered
            or self.stats is not None
            or self.info != self.report.meta.info
        )

    def quarantined(self) -> list[Path]:
        """The files and folders that will be quarantined."""
        return [self.root] if self.rewrites else [*self.orphaned_files, *self.partial]

    def write_metadata(self) -> list[Path]:
        """Quarantine orphaned files, and write `meta`, `info.json` last; returns the quarantine folder."""
        folder, meta = quarantine.next_folder(self.root), self.report.meta
        for path, rows in self.partial.items():
            quarantine.copy(self.root, path, folder)
            with durable.replacing_file(path) as temporary:
                pq.write_table(read_table(path).take(rows), temporary, compression="snappy")
        quarantine.move(self.root, self.orphaned_files, folder)
        if self.report.tasks_recovered:
            quarantine.copy(self.root, self.root / layout.TASKS, folder)
            with durable.replacing_file(self.root / layout.TASKS) as temporary:
                pq.write_table(tasks_table([meta.tasks[number] for number in sorted(meta.tasks)]), temporary)
        if self.stats is not None:
            quarantine.copy(self.root, self.root / layout.STATS, folder)
            durable.write_json(self.root / layout.STATS, statistics_to_json(self.stats))
        if self.info != meta.info:
            quarantine.copy(self.root, self.root / layout.INFO, folder)
            durable.write_json(self.root / layout.INFO, self.info)
        return [folder] if folder.exists() else []

    def _new_info(self) -> dict[str, Any]:
        old, rows = self.report.meta.info, self.report.rows
        counts = {"total_episodes": len(rows), "total_frames": sum(row.length for row in rows)}
        tasks = len(self.report.meta.tasks)
        if (
            counts.items() <= old.items()
            and old.get("total_tasks", tasks) in range(tasks + 1)
            and not self.report.tasks_recovered
        ):
            return old
        updates = {"total_tasks": tasks, "splits": splits.subset(old, [row.index for row in rows])}
        return {**old, **counts, **updates}

    def _new_statistics(self) -> Statistics | None:
        """The new `stats.json`; None if no crash can have made it wrong."""
        if not self.report.rows:
            return None
        try:
            stored = read_stats(self.root / layout.STATS)
        except DatasetError:
            stored = {}
        counts = [stored.get(name, {}).get("count") for name in ("index", "timestamp")]
        is_current = all(count is not None and (count == self.info["total_frames"]).all() for count in counts)
        if stored and (is_current or self.info == self.report.meta.info):
            return None
        if not self._has_statistics():
            return {}
        files = list(dict.fromkeys(row.data_path for row in self.report.rows))
        try:
            statistics = aggregate([row.statistics for row in self.report.rows])
            return statistics | file_statistics(self.root, files, self.report.meta.features)
        except ValueError as error:
            raise DatasetError(
                f"{self.root}: the episodes' statistics differ in shape ({error}). Nothing was changed. Make the dataset anew "
                "with the tool that made it."
            ) from error

    def _has_statistics(self) -> bool:
        """Whether `meta/episodes` has all statistics to aggregate."""
        names = [
            name
            for name, feature in self.report.meta.features.items()
            if (feature.is_image or feature.is_numeric) and not feature.is_depth
        ]
        return all(
            {"min", "max", "mean", "std", "count"} <= row.statistics.get(name, {}).keys()
            and all(np.isfinite(value).all() for value in row.statistics[name].values())
            for row in self.report.rows
            for name in names
        )


def _rewrite(report: RecoveryReport, root: Path, quick: bool, progress: Progress) -> Path:
    """Exchange the dataset with one of the intact episodes; returns the old one's new path."""
    plan, excluded = edit.all_episodes(RecoveredSource(report)), quarantine.staging_folders(root)
    return exchange(plan, quick, progress, excluded, advice="stop it")


def _rename_aside(root: Path, old: Path) -> Path:
    """Rename the folder `old` to the first free `NAME.aside-NNN`."""
    target = quarantine.first_free(root.parent, f"{root.name}.aside-{{number:03d}}")
    with durable.annotate_errors(target):
        old.rename(target)
        durable.sync_folder(target.parent)
    return target


def _files_below(path: Path) -> Iterator[Path]:
    return (entry for entry in path.rglob("*") if entry.is_file()) if path.is_dir() else iter((path,))

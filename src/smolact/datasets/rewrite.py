"""Execution of an edit plan: the new dataset is built in a temporary folder, checked, and then put in its place.

Everything that the plan does not mention is unchanged: rows are copied, videos are cut and joined without re-encoding, and
files outside the format are copied. Only cuts that need outside frames are encoded again, with a warning.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Collection
from pathlib import Path

from smolact import durable
from smolact.datasets import format as layout
from smolact.datasets.edit import EditPlan
from smolact.datasets.extra_files import copy_extra_files
from smolact.datasets.faults import Progress, no_progress
from smolact.datasets.inspection import check_dataset
from smolact.datasets.lock import FolderLock, ReadLock, ReplaceLock
from smolact.datasets.metadata import read_info
from smolact.datasets.rewritten_files import Rewriter
from smolact.datasets.rewritten_metadata import write_metadata
from smolact.errors import ConfigError, DatasetError
from smolact.hub import is_snapshot

logger = logging.getLogger(__name__)


def build(plan: EditPlan, output: Path, quick: bool = False, progress: Progress = no_progress) -> Path:
    """Build the dataset of `plan` in the new folder `output`, check it, and return `output`.

    Args:
        output: must not exist.
        quick: skip decoding the result's images.
        progress: called for each episode.

    Raises:
        ConfigError: the folder exists.
        DatasetError: a source is corrupt; or the result has faults and is discarded.
        WriteError: the disk is full or refused; the new dataset is removed.
    """
    if output.exists():
        raise ConfigError(f"{output} exists already. Choose another --output, or remove it first.")
    with contextlib.ExitStack() as stack, durable.replacing_folder(output) as folder:
        for source in plan.sources:
            stack.enter_context(ReadLock(source.meta.root))
        with durable.annotate_errors(folder):
            copy_extra_files(plan.sources, folder)
        _build_in(plan, folder, quick, progress)
    return output


def replace(plan: EditPlan, quick: bool = False, progress: Progress = no_progress) -> Path:
    """Build the dataset of `plan` and replace its only source with it; returns the folder.

    The errors are those of `build`; the old dataset is then unchanged.
    """
    (source,) = plan.sources
    with FolderLock(source.meta.root):
        if read_info(source.meta.root / layout.INFO) != source.meta.info:
            raise DatasetError(
                f"{source.meta.root} was changed by another process meanwhile. Run this again."
            )
        durable.remove_folder(exchange(plan, quick, progress))
    return source.meta.root.resolve()


def exchange(
    plan: EditPlan,
    quick: bool = False,
    progress: Progress = no_progress,
    excluded: Collection[Path] = (),
    advice: str = "give --output=FOLDER for the result",
) -> Path:
    """Like `replace`, but keeps the old dataset: returns its new folder, next to the new dataset.

    Folders in `excluded` are not copied from the old dataset. The caller must hold the writer's lock. `advice` is the
    alternative to waiting that the error names if the dataset is being read.
    """
    (source,) = plan.sources
    root = source.meta.root.resolve()
    if is_snapshot(root):
        raise ConfigError(
            f"{root} is a copy that the Hub's cache keeps. Give --output=FOLDER for the new dataset."
        )
    old = durable.backup_path(root)
    if old.exists():
        raise ConfigError(
            f"{old} is the dataset as it was before an edit that was killed at its very end. Look at it, then remove it, or "
            f"have it put aside: smolact dataset repair --dataset.root={root}"
        )
    warn_of_leftovers(root)
    with ReplaceLock(root, advice):
        fresh = durable.temporary_beside(root)
        with durable.replacing_folder(fresh) as folder:
            with durable.annotate_errors(folder):
                copy_extra_files([source], folder, excluded)
            _build_in(plan, folder, quick, progress)
        try:
            return durable.exchange_folders(root, fresh)
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            raise


def warn_of_leftovers(root: Path) -> None:
    """Log temporary files of an edit next to the dataset; they are not removed, since an edit may be running."""
    leftovers = durable.find_leftovers(root)
    if leftovers:
        logger.warning(
            "%s: beside it lies what an edit that was killed has left (or one at work has now): %s. Remove it when "
            "nothing writes there.",
            root,
            ", ".join(path.name for path in leftovers),
        )


def restore(root: Path) -> bool:
    """Restore the old dataset that a killed edit had moved away from the folder `root`. Return whether there was one.

    Raises:
        WriteError: the edit is still running, or the disk refused.
    """
    if not durable.replacement_interrupted(root):
        return False
    old = durable.backup_path(root)
    with FolderLock(old), durable.annotate_errors(root):
        if not durable.replacement_interrupted(root):
            return False
        old.rename(root)
        durable.sync_folder(root.parent)
    logger.warning("%s: an edit was killed before it was done. The dataset as it was before is back.", root)
    return True


def _build_in(plan: EditPlan, folder: Path, quick: bool, progress: Progress) -> None:
    with durable.annotate_errors(folder):
        rewriter = Rewriter(plan, folder, progress)
        rewriter.write()
        write_metadata(rewriter)
    errors = [fault for fault in check_dataset(folder, quick, progress) if fault.severity == "error"]
    if errors:
        raise DatasetError(
            f"The new dataset would have {len(errors)} faults, and was not kept; the old one is as it was. The first: "
            f"{errors[0]} See whether the old one has it too: smolact dataset check"
        )

"""Keep all reads and writes inside a dataset's folder; see `smolact.openable`."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from smolact.datasets.faults import Fault
from smolact.errors import DatasetError
from smolact.openable import faults_below, leads_out

_ENTRIES = ("data", "meta", "videos")
_MESSAGE = "and such files are neither read nor written. If it is your own doing, put the file or folder itself there, readable for you; else do not use this dataset."


def unsafe_paths(root: Path, entries: Collection[str] = _ENTRIES) -> Iterator[Fault]:
    """Links out of the folder `root`, irregular files and unreadable folders below `entries`."""
    return (Fault("error", file, f"{problem}, {_MESSAGE}") for file, problem in faults_below(root, entries))


def check_confined(root: Path, entries: Collection[str] = _ENTRIES) -> None:
    """Raise a `DatasetError` if `entries` have an unsafe path."""
    for fault in unsafe_paths(root, entries):
        raise DatasetError(f"{root / fault.location} {fault.message}")


def check_inside(root: Path, file: str) -> None:
    """Raise a `DatasetError` if `file`, relative to `root`, leads out of it."""
    target = leads_out(root, root / file)
    if target is not None:
        raise DatasetError(f"{root / file} leads out of the folder, to {target}, {_MESSAGE}")

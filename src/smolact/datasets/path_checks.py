"""Keep all reads and writes inside a dataset's folder; see `smolact.openable`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from smolact.datasets.episodes import Episodes
from smolact.datasets.faults import Fault
from smolact.errors import DatasetError
from smolact.openable import faults_below, leads_out

META = ("meta",)
_MESSAGE = "and such files are neither read nor written. If it is your own doing, put the file or folder itself there, readable for you; else do not use this dataset."


def unsafe_paths(root: Path, entries: tuple[str, ...] = ("data", "meta", "videos")) -> Iterator[Fault]:
    """Links out of the folder `root`, irregular files and unreadable folders below `entries`."""
    return (Fault("error", file, f"{problem}, {_MESSAGE}") for file, problem in faults_below(root, entries))


def entries_of(episodes: Episodes) -> tuple[str, ...]:
    """The entries of a dataset's folder with its files."""
    files = set(episodes.data_path).union(*episodes.video_path.values())
    return tuple({"data", "videos", *(file.partition("/")[0] for file in files)})


def check_confined(root: Path, entries: tuple[str, ...] = ("data", "meta", "videos")) -> None:
    """Raise a `DatasetError` if `entries` have an unsafe path."""
    for fault in unsafe_paths(root, entries):
        raise DatasetError(f"{root / fault.location} {fault.message}")


def check_inside(root: Path, file: str) -> None:
    """Raise a `DatasetError` if `file`, relative to `root`, leads out of it."""
    target = leads_out(root, root / file)
    if target is not None:
        raise DatasetError(f"{root / file} leads out of the folder, to {target}, {_MESSAGE}")

"""What of a dataset must not be opened, so that no command reads or writes out of its folder; see `smolact.openable`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from smolact.datasets.episodes import Episodes
from smolact.datasets.faults import Fault
from smolact.errors import DatasetError
from smolact.openable import faults_below, leads_out

META = ("meta",)
_MESSAGE = "and such files are neither read nor written. If it is your own doing, put the file or folder itself there, readable for you; else do not use this dataset."


def unfit(root: Path, entries: tuple[str, ...] = ("data", "meta", "videos")) -> Iterator[Fault]:
    """What below these entries of the folder `root` is a link out of it, no regular file, or a folder that can't be read."""
    return (Fault("error", place, f"{what}, {_MESSAGE}") for place, what in faults_below(root, entries))


def entries_of(episodes: Episodes) -> tuple[str, ...]:
    """The entries of a dataset's folder in which its files are."""
    places = set(episodes.data_path).union(*episodes.video_path.values())
    return tuple({"data", "videos", *(place.partition("/")[0] for place in places)})


def check_confined(root: Path, entries: tuple[str, ...] = ("data", "meta", "videos")) -> None:
    """Raise a `DatasetError` for the first thing below these entries that must not be opened."""
    for fault in unfit(root, entries):
        raise DatasetError(f"{root / fault.place} {fault.message}")


def check_inside(root: Path, place: str) -> None:
    """Raise a `DatasetError` if `place`, relative to `root`, leads out of it."""
    target = leads_out(root, root / place)
    if target is not None:
        raise DatasetError(f"{root / place} leads out of the folder, to {target}, {_MESSAGE}")

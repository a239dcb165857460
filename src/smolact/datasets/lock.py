"""Who is at work in a dataset's folder: one writer at a time, and no edit in its place while somebody reads it.

A folder is locked while it is recorded into, edited in its place, or repaired; its `meta` is locked too, by readers together, by an
edit alone. The locks are on the folders themselves, so that they stay with them when an edit renames them (see `smolact.lock`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from smolact.errors import DatasetError
from smolact.hub import missing_folder
from smolact.lock import PathLock


class FolderLock(PathLock):
    """Held by the writer of the dataset in `root`, from when it is made until `release` or the end of its block or process.

    Raises:
        NotFoundError: there is no such folder.
        WriteError: another process holds it, or this one does already.
    """

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise missing_folder(root, "dataset")
        super().__init__(
            root,
            lambda holder: (
                f"{root} is being written by {holder}: two writers would spoil each other's episodes. Wait until it is "
                "done, or stop it, and run this again."
            ),
        )


class ReadLock(PathLock):
    """The lock of a reader of the dataset in `root`, one of many. A copy in another process (a worker's) holds its own.

    Raises:
        DatasetError: an edit is about to put another dataset in its place.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        super().__init__(
            root / "meta",
            lambda holder: (
                f"{root} is being changed by {holder}, which will put another dataset in its place. Wait until it is done."
            ),
            shared=True,
            inside=root,
        )

    def error(self, message: str, errno: int | None) -> Exception:
        """Reading is what fails."""
        return DatasetError(message)

    def __reduce__(self) -> tuple[Any, ...]:
        return ReadLock, (self._root,)


class NoReaders(PathLock):
    """The lock of an edit that puts another dataset in the place of the one in `root`: nobody reads it, and nobody begins to.

    Args:
        root: the dataset's folder.
        advice: what can be done besides waiting.

    Raises:
        WriteError: somebody reads it.
    """

    def __init__(self, root: Path, advice: str) -> None:
        super().__init__(
            root / "meta",
            lambda holder: (
                f"{root} is being read by {holder}, whose files would be taken away. Wait until it is done, or {advice}."
            ),
            inside=root,
        )

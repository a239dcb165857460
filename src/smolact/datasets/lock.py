"""Locks of a dataset's folder: one writer at a time, and no in-place edit while the dataset is read.

The folder is locked during recording, in-place edits and repairs; its `meta` too, shared by readers, exclusively by an
edit. The locks are on the folders themselves and follow their renames by an edit (see `smolact.lock`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from smolact.errors import DatasetError
from smolact.hub import missing_folder
from smolact.lock import PathLock


class FolderLock(PathLock):
    """The lock of the writer of the dataset in `root`, held from construction until `release` or the end of its block or process.

    Raises:
        NotFoundError: the folder does not exist.
        WriteError: another process, or this one, already holds the lock.
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
    """A shared lock of a reader of the dataset in `root`. A copy in another process (a worker) holds its own lock.

    Raises:
        DatasetError: an edit is about to replace the dataset.
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
        """A `DatasetError`, since reading fails."""
        return DatasetError(message)

    def __reduce__(self) -> tuple[Any, ...]:
        return ReadLock, (self._root,)


class ReplaceLock(PathLock):
    """The lock of an edit that replaces the dataset in `root`: no reader holds or can acquire the read lock.

    Args:
        advice: the alternative to waiting that the error names.

    Raises:
        WriteError: the dataset is being read.
    """

    def __init__(self, root: Path, advice: str) -> None:
        super().__init__(
            root / "meta",
            lambda holder: (
                f"{root} is being read by {holder}, whose files would be taken away. Wait until it is done, or {advice}."
            ),
            inside=root,
        )

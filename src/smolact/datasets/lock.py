"""One writer at a time: a dataset's folder is locked while it is recorded into, edited in its place, or repaired.

The lock is on the folder itself, so that it stays with the folder when an edit renames it (see `smolact.lock`).
"""

from __future__ import annotations

from pathlib import Path

from smolact.hub import missing_folder
from smolact.lock import PathLock


class FolderLock(PathLock):
    """Held from when it is made until `release`, the end of its block, or the end of the process.

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

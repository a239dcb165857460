"""One writer at a time: a dataset's folder is locked while it is recorded into, edited in its place, or repaired.

The lock is the system's own (flock), on the folder itself: nothing is left of it when its holder dies, however it dies,
and it stays with the folder when an edit renames it. Windows has no such lock, and some network disks have none of
folders: nobody is kept out there.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from smolact.errors import WriteError
from smolact.hub import missing_folder

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


class FolderLock:
    """Held from when it is made until `release`, the end of its block, or the end of the process.

    Raises:
        NotFoundError: there is no such folder.
        WriteError: another process holds it, or this one does already.
    """

    def __init__(self, root: Path) -> None:
        self.release: Callable[[], object] = lambda: None
        if not root.is_dir():
            raise missing_folder(root, "dataset")
        while fcntl is not None:
            descriptor = os.open(root, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                holder = _holder(os.fstat(descriptor).st_ino)
                os.close(descriptor)
                raise WriteError(
                    error.errno,
                    f"{root} is being written by {holder}: two writers would spoil each other's episodes. Wait until it is "
                    "done, or stop it, and run this again.",
                ) from None
            except OSError:  # this disk does not lock folders
                os.close(descriptor)
                return
            if root.is_dir() and os.path.samestat(os.fstat(descriptor), root.stat()):
                self.release = weakref.finalize(self, os.close, descriptor)
                return
            os.close(descriptor)  # an edit has put another folder in its place meanwhile

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def _holder(inode: int) -> str:
    """Who holds the lock of a folder, where the system tells (Linux)."""
    locks, unknown = Path("/proc/locks"), "another process"
    for line in locks.read_text().splitlines() if locks.exists() else ():
        words = line.split()  # 1: FLOCK ADVISORY WRITE 4711 fd:01:2345 0 EOF
        if len(words) < 6 or words[1] != "FLOCK" or words[5].rpartition(":")[2] != str(inode):
            continue
        if words[4] == str(os.getpid()):
            return f"process {words[4]}, which is this one (a writer that was not closed)"
        command = Path("/proc", words[4], "cmdline")
        named = command.read_bytes().decode(errors="replace").split("\0")[:3] if command.exists() else []
        return f"process {words[4]} ({' '.join(named).strip()})" if any(named) else f"process {words[4]}"
    return unknown

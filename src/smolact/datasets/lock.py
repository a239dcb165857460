"""Who is at work in a dataset's folder: one writer at a time, and no edit in its place while somebody reads it.

A folder is locked while it is recorded into, edited in its place, or repaired; its `meta` is locked too, by readers together, by an
edit alone. The locks are the system's own (flock): nothing is left of one when its holder dies, however it dies, and it stays
with the folder when an edit renames it. Windows has no such lock, and some network disks have none of folders: nobody is
kept out there.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from smolact.errors import DatasetError, WriteError
from smolact.hub import missing_folder

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


class _Lock:
    """A lock on a folder, held from when it is made until `release`, the end of its block, or the end of the process."""

    def __init__(self, folder: Path, *, shared: bool = False) -> None:
        self.release: Callable[[], object] = lambda: None
        while fcntl is not None and folder.is_dir():
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            except BlockingIOError as error:
                holder = _holder(os.fstat(descriptor).st_ino)
                os.close(descriptor)
                raise self.refused(holder, error.errno) from None
            except OSError:  # this disk does not lock folders
                os.close(descriptor)
                return
            if folder.is_dir() and os.path.samestat(os.fstat(descriptor), folder.stat()):
                self.release = weakref.finalize(self, os.close, descriptor)
                return
            os.close(descriptor)  # an edit has put another folder in its place meanwhile

    def refused(self, holder: str, errno: int | None) -> Exception:
        """The error when somebody else holds it."""
        raise NotImplementedError

    def __enter__(self) -> _Lock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class FolderLock(_Lock):
    """The lock of whoever writes to the dataset in `root`.

    Raises:
        NotFoundError: there is no such folder.
        WriteError: another process holds it, or this one does already.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        if not root.is_dir():
            raise missing_folder(root, "dataset")
        super().__init__(root)

    def refused(self, holder: str, errno: int | None) -> Exception:
        """The error when somebody else writes."""
        return WriteError(
            errno,
            f"{self._root} is being written by {holder}: two writers would spoil each other's episodes. Wait until it is "
            "done, or stop it, and run this again.",
        )


class ReadLock(_Lock):
    """The lock of a reader of the dataset in `root`, one of many. A copy in another process (a worker's) holds its own.

    Raises:
        DatasetError: an edit is about to put another dataset in its place.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        super().__init__(root / "meta", shared=True)

    def refused(self, holder: str, errno: int | None) -> Exception:
        """The error when somebody edits it."""
        return DatasetError(
            f"{self._root} is being changed by {holder}, which will put another dataset in its place. Wait until it is done."
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return ReadLock, (self._root,)


class NoReaders(_Lock):
    """The lock of an edit that puts another dataset in the place of the one in `root`: nobody reads it, and nobody begins to.

    Args:
        root: the dataset's folder.
        advice: what can be done besides waiting.

    Raises:
        WriteError: somebody reads it.
    """

    def __init__(self, root: Path, advice: str) -> None:
        self._root, self._advice = root, advice
        super().__init__(root / "meta")

    def refused(self, holder: str, errno: int | None) -> Exception:
        """The error when somebody reads it."""
        return WriteError(
            errno,
            f"{self._root} is being read by {holder}, whose files would be taken away. Wait until it is done, or {self._advice}.",
        )


def _holder(inode: int) -> str:
    """Who holds the lock of a folder, where the system tells (Linux); of a process and its workers, the process."""
    locks = Path("/proc/locks")
    lines = [line.split() for line in locks.read_text().splitlines()] if locks.exists() else []
    holders = [  # 1: FLOCK ADVISORY WRITE 4711 fd:01:2345 0 EOF
        words[4]
        for words in lines
        if len(words) > 5 and words[1] == "FLOCK" and words[5].rpartition(":")[2] == str(inode)
    ]
    for number in [pid for pid in holders if _parent(pid) not in holders] or holders:
        if number == str(os.getpid()):
            return f"process {number}, which is this one (something that was not closed)"
        command = Path("/proc", number, "cmdline")
        named = command.read_bytes().decode(errors="replace").split("\0")[:3] if command.exists() else []
        return f"process {number} ({' '.join(named).strip()})" if any(named) else f"process {number}"
    return "another process"


def _parent(process: str) -> str | None:
    """The process that began this one, where it is still there."""
    status = Path("/proc", process, "status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((line.split()[1] for line in lines if line.startswith("PPid:")), None)

"""One writer at a time: the system's own lock (flock) on a file or folder.

Nothing is left of such a lock when its holder dies, however it dies. Windows has none, and some network disks have none: nobody
is kept out there, and `PathLock.is_held` is false.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import os
import socket
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

from smolact import durable
from smolact.errors import WriteError
from smolact.openable import leads_out

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

LOCK_FILE = ".lock"
"""In a folder that is being written: who writes there, and since when. What a killed writer leaves of it keeps nobody out."""


class _Opened:
    """An open file that is closed once, by whoever comes first."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    def close(self) -> None:
        """Close it, unless it is closed."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


_EXCLUSIVE: weakref.WeakSet[_Opened] = weakref.WeakSet()
"""What one process alone holds. A fork has these files too, and would hold the lock when its parent is dead."""


def _leave_to_parent() -> None:
    """In a fork: close what its parent alone holds."""
    for opened in list(_EXCLUSIVE):
        opened.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)


class PathLock:
    """Held from when it is made until `release`, the end of its block, or the end of the process.

    Args:
        path: a folder that is there, or a file, which is made if it is not there.
        refusal: the message for whoever comes second, made of the words that name the holder.
        shared: several may hold it at once, and one that is not shared keeps all of them out.
        inside: a folder; a `path` that links lead out of it is not opened, and not locked.

    Attributes:
        is_held: false where the system or the disk has no such lock.

    Raises:
        WriteError: another process holds it, or this one does already.
    """

    def __init__(
        self,
        path: Path,
        refusal: Callable[[str], str],
        *,
        shared: bool = False,
        inside: Path | None = None,
    ) -> None:
        self.release: Callable[[], object] = lambda: None
        self.is_held = False
        if inside is not None and leads_out(inside, path) is not None:
            return
        is_folder = path.is_dir()
        while fcntl is not None and (
            path.is_dir() if is_folder else not shared
        ):  # only a writer makes a file
            if is_folder:
                descriptor = os.open(path, os.O_RDONLY)
            else:
                with durable.annotate_errors(path):
                    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            except BlockingIOError as error:
                holder = (None if is_folder else _noted(path)) or _holder(os.fstat(descriptor).st_ino)
                os.close(descriptor)
                raise self.error(refusal(holder), error.errno) from None
            except OSError:  # this disk has no such lock
                os.close(descriptor)
                return
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                opened = _Opened(descriptor)
                self.release = weakref.finalize(self, opened.close)
                if not shared:
                    _EXCLUSIVE.add(opened)
                self.is_held = True
                return
            os.close(
                descriptor
            )  # meanwhile its holder has removed the file, or put another folder in its place

    def error(self, message: str, errno: int | None) -> Exception:
        """What whoever comes second is given."""
        return WriteError(errno, message)

    def __enter__(self) -> PathLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


@contextlib.contextmanager
def writing_into(folder: Path, *, instead: str | None) -> Iterator[bool]:
    """Be the only writer of an output folder within the block; the folder is made if it is not there.

    At the end of the block `LOCK_FILE` is removed, and the folder too if it was made here and nothing was written into it.

    Args:
        folder: where the files go.
        instead: what the second writer may do but wait, such as "choose another --output_dir".

    Yields:
        whether the others are kept out; where the disk has no locks, they are not.

    Raises:
        WriteError: another process writes there, whom the message names; or the disk is full or refused.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    durable.make_folder(folder)

    def refusal(holder: str) -> str:
        ways = ["Wait until it is done", "stop it", *([instead] if instead else [])]
        return f"{folder} is being written by {holder}: two writers would mix their files. {', '.join(ways[:-1])}, or {ways[-1]}."

    path = folder / LOCK_FILE
    try:
        with PathLock(path, refusal) as lock:
            if lock.is_held:
                _note(path)
            else:
                logger.info("No lock can be had in %s: see to it that nothing else writes there.", folder)
            try:
                yield lock.is_held
            finally:
                path.unlink(missing_ok=True)  # while it is held: who comes next makes another
    finally:
        with contextlib.suppress(OSError):  # something is in it
            for made in missing:
                made.rmdir()


def is_unused(folder: Path) -> bool:
    """Whether nothing is in a folder but, it may be, the lock of a writer."""
    return folder.is_dir() and all(entry.name == LOCK_FILE for entry in folder.iterdir())


def _note(path: Path) -> None:
    """Write into a lock's file who holds it."""
    since = datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    note = {"pid": os.getpid(), "host": socket.gethostname(), "command": sys.argv, "since": since}
    with durable.annotate_errors(path):
        path.write_text(json.dumps(note), encoding="utf-8")


def _noted(path: Path) -> str | None:
    """Who holds a lock, as its file says; None while it says nothing."""
    try:
        note = json.loads(path.read_text(encoding="utf-8"))
        if note["host"] == socket.gethostname() and not _is_alive(int(note["pid"])):
            return None
        command = " ".join(map(str, note["command"]))
        return f"process {note['pid']} on {note['host']} since {note['since']} ({command:.300})"
    except (OSError, ValueError, TypeError, KeyError):  # it is just being written
        return None


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        pass
    return True


def _holder(inode: int) -> str:
    """Who holds the lock of a file or folder, where the system tells (Linux); of a process and its workers, the process."""
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

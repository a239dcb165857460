"""Exclusive and shared locks: the operating system's lock (flock) on a file or folder.

The lock ends with its holder, however the process dies. Windows and some network disks have no such lock: access is not
exclusive there, and `PathLock.is_held` is false.
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

from smolact import durable
from smolact.errors import WriteError
from smolact.openable import leads_out

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

LOCK_FILE = ".lock"
"""The lock file of a folder being written: the holder and its start time. A killed writer's file does not block others."""


_EXCLUSIVE: set[weakref.finalize[..., PathLock]] = set()
"""Each closes an exclusively locked file, once. A fork inherits them, and would hold the locks after its parent's death."""


def _close_inherited() -> None:
    """In a fork: close the parent's exclusively locked files."""
    for close in _EXCLUSIVE:
        close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_inherited)


class PathLock:
    """A lock held from construction until `release`, the end of its block, or the end of the process.

    Args:
        path: an existing folder, or a file, which is created if missing.
        refusal: makes the error message from a description of the holder.
        shared: several processes may hold it at once; excludes holders that are not shared.
        inside: a folder; a `path` that links lead out of it is neither opened nor locked.

    Attributes:
        is_held: false where the operating system or the disk has no such lock.

    Raises:
        WriteError: another process, or this one, already holds the lock.
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
        ):  # only a writer creates the file
            if is_folder:
                descriptor = os.open(path, os.O_RDONLY)
            else:
                with durable.annotate_errors(path):
                    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            except BlockingIOError as error:
                holder = (None if is_folder else _read_holder(path)) or _find_holder(
                    os.fstat(descriptor).st_ino
                )
                os.close(descriptor)
                raise self.error(refusal(holder), error.errno) from None
            except OSError:  # no locks on this disk
                os.close(descriptor)
                return
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                self.release = close = weakref.finalize(self, os.close, descriptor)
                if not shared:
                    _EXCLUSIVE.difference_update([other for other in _EXCLUSIVE if not other.alive])
                    _EXCLUSIVE.add(close)
                self.is_held = True
                return
            os.close(descriptor)  # its holder has meanwhile removed the file or replaced the folder

    def error(self, message: str, errno: int | None) -> Exception:
        """The exception raised when the lock is already held."""
        return WriteError(errno, message)

    def __enter__(self) -> PathLock:
        return self

    def __exit__(self, *_error: object) -> None:
        self.release()


@contextlib.contextmanager
def writing_into(folder: Path, *, instead: str | None) -> Iterator[bool]:
    """Hold the exclusive writer's lock of an output folder within the block; the folder is created if missing.

    At the end of the block `LOCK_FILE` is removed, and the folder too if it was created here and is empty.

    Args:
        instead: the alternative to waiting that the error names, such as "choose another --output_dir".

    Yields:
        whether the lock is held; it is not on disks without locks.

    Raises:
        WriteError: another process, named in the message, writes there; or the disk is full or refused.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    durable.make_folder(folder)

    def refusal(holder: str) -> str:
        options = ["Wait until it is done", "stop it", *([instead] if instead else [])]
        return f"{folder} is being written by {holder}: two writers would mix their files. {', '.join(options[:-1])}, or {options[-1]}."

    path = folder / LOCK_FILE
    try:
        with PathLock(path, refusal) as lock:
            if lock.is_held:
                _write_holder(path)
            else:
                logger.info("No lock can be had in %s: see to it that nothing else writes there.", folder)
            try:
                yield lock.is_held
            finally:
                path.unlink(missing_ok=True)  # while the lock is held: the next writer creates another file
    finally:
        with contextlib.suppress(OSError):  # it is not empty
            for created in missing:
                created.rmdir()


def is_unused(folder: Path) -> bool:
    """Whether a folder is empty except for a writer's lock file."""
    return folder.is_dir() and all(entry.name == LOCK_FILE for entry in folder.iterdir())


def _write_holder(path: Path) -> None:
    """Write the holder into the lock file."""
    since = datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    note = {"pid": os.getpid(), "host": socket.gethostname(), "command": sys.argv, "since": since}
    with durable.annotate_errors(path):
        path.write_text(json.dumps(note), encoding="utf-8")


def _read_holder(path: Path) -> str | None:
    """The holder of a lock according to its file; None if the file is incomplete or stale."""
    try:
        note = json.loads(path.read_text(encoding="utf-8"))
        if note["host"] == socket.gethostname() and not _is_alive(int(note["pid"])):
            return None
        command = " ".join(map(str, note["command"]))
        return f"process {note['pid']} on {note['host']} since {note['since']} ({command:.300})"
    except (OSError, ValueError, TypeError, KeyError):  # it is being written
        return None


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's process
        pass
    return True


def _find_holder(inode: int) -> str:
    """The process that holds a file's or folder's lock (Linux only); the parent where its workers hold it too."""
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
    """The parent of a process, if that process still runs."""
    status = Path("/proc", process, "status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((line.split()[1] for line in lines if line.startswith("PPid:")), None)

"""Durable writes to disk: temporary name, flush, fsync, atomic rename, fsync of the folder.

A reader sees the old or the new content, never a partial file, even if the process is killed. Temporary names begin with
`.tmp-`, are in the target's folder, and are ignored by every reader: leftovers of a crash are not data.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smolact.errors import WriteError

if TYPE_CHECKING:
    from torch import Tensor

TEMPORARY_PREFIX = ".tmp-"
_REFUSED = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ENOENT, errno.ENOTDIR),
    *(errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.EINVAL, errno.ELOOP),
    *(errno.EFBIG, errno.ENODEV, errno.ENXIO),
}
_OS_ERROR = re.compile(r"os error (\d+)")


def temporary_beside(path: Path) -> Path:
    """A unique temporary path in the folder of `path`."""
    return path.parent / f"{TEMPORARY_PREFIX}{secrets.token_hex(6)}-{path.name}"


def sync_file(path: Path) -> None:
    """Fsync a closed file."""
    # Windows can fsync only files opened for writing.
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Fsync a folder's entries (created, renamed or removed names)."""
    if os.name == "nt":  # Windows can't open folders; its renames are journaled
        return
    sync_file(path)


def make_folder(path: Path) -> None:
    """Create a folder and its parents, and fsync each new name.

    Raises:
        WriteError: the disk is full or refused, or a file has that name.
    """
    with annotate_errors(path):
        missing = []
        current = path
        while not current.exists():
            missing.append(current)
            current = current.parent
        for folder in reversed(missing):
            with contextlib.suppress(FileExistsError):
                os.mkdir(folder)
            try:
                sync_folder(folder.parent)
            except BaseException:
                with contextlib.suppress(OSError):  # so that a retry creates and syncs it again
                    folder.rmdir()
                raise
        if not path.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))


@contextlib.contextmanager
def replacing_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write; on success it becomes `path`, on any error it is removed.

    Raises:
        WriteError: the disk is full or refused; `path` is unchanged.
    """
    with annotate_errors(path):
        make_folder(path.parent)
        temporary = temporary_beside(path)
        try:
            yield temporary
            publish(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def publish(staged: Path, path: Path) -> None:
    """Move a finished file `staged` (on the same disk) to `path` durably, replacing an existing file.

    For writers that stage their files elsewhere because readers list the folder of `path`.

    Raises:
        WriteError: the disk refused; `staged` may then be published again.
    """
    with annotate_errors(path):
        make_folder(path.parent)
        sync_file(staged)
        os.replace(staged, path)
        sync_folder(path.parent)


@contextlib.contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder to fill; on success it becomes `path`, which must not exist, on any error it is removed.

    Raises:
        WriteError: the disk is full or refused, or `path` exists.
    """
    with annotate_errors(path):
        make_folder(path.parent)
        temporary = temporary_beside(path)
        os.mkdir(temporary)
        try:
            yield temporary
            for folder, _, names in os.walk(temporary, topdown=False):
                for name in names:
                    if not Path(folder, name).is_symlink():
                        sync_file(Path(folder, name))
                sync_folder(Path(folder))
            if path.exists():
                raise WriteError(f"{path} exists already. Choose another folder, or remove it first.")
            os.rename(temporary, path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        sync_folder(path.parent)


def backup_path(path: Path) -> Path:
    """The path of the old folder of `path` while `exchange_folders` replaces it."""
    return path.with_name(f"{path.name}.replaced")


def replacement_interrupted(path: Path) -> bool:
    """Whether `exchange_folders` died between its two renames: `path` does not exist, and the old folder has its backup name."""
    return not path.exists() and backup_path(path).is_dir()


def exchange_folders(path: Path, fresh: Path) -> Path:
    """Give the name `path` to the finished folder `fresh` next to it; returns the new path of the old folder.

    No operating system renames two folders at once. After a crash in between, the old folder is at `backup_path(path)`, and
    `replacement_interrupted` returns true.

    Raises:
        WriteError: the disk refused; `path` is unchanged.
    """
    with annotate_errors(path):
        old = backup_path(path)
        path.rename(old)
        try:
            sync_folder(path.parent)
            fresh.rename(path)
        except BaseException:
            old.rename(path)
            raise
        sync_folder(path.parent)
    return old


def find_leftovers(path: Path) -> list[Path]:
    """Temporary files of `path` from dead or running writers, in the same folder."""
    name = re.compile(rf"({re.escape(TEMPORARY_PREFIX)}[0-9a-f]{{12}}-)+{re.escape(path.name)}(\.replaced)?")
    return sorted(entry for entry in path.parent.iterdir() if name.fullmatch(entry.name))


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically."""
    with replacing_file(path) as temporary:
        temporary.write_bytes(data)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file. Not durable by itself: use it inside `replacing_file` or `replacing_folder`, which annotate errors.

    Raises:
        OSError: the disk is full or refused; safetensors itself raises another error for that.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(dict(tensors), path, metadata=metadata)
    except SafetensorError as error:
        match = _OS_ERROR.search(str(error))
        if match is None:
            raise
        raise OSError(int(match[1]), os.strerror(int(match[1]))) from error


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8 to `path` atomically."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any, indent: int | None = 4) -> None:
    """Write `value` as JSON to `path` atomically. NaN and infinity raise a ValueError: they are not JSON."""
    write_text(path, json.dumps(value, indent=indent, allow_nan=False, ensure_ascii=False) + "\n")


def link(path: Path, target: str) -> None:
    """Make `path` a symbolic link to `target` (relative to its folder), replacing an existing link."""
    with annotate_errors(path):
        make_folder(path.parent)
        temporary = temporary_beside(path)
        try:
            os.symlink(target, temporary)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def remove_folder(path: Path) -> None:
    """Remove a folder; after a crash it is complete or gone, since it is renamed to a temporary name first."""
    with annotate_errors(path):
        temporary = temporary_beside(path)
        os.rename(path, temporary)
        sync_folder(path.parent)
        shutil.rmtree(temporary)


def remove_litter(folder: Path) -> list[Path]:
    """Remove leftovers of interrupted writes in `folder` (not below it), and return their paths.

    Call it only where no other process writes: a running write has a temporary name too.
    """
    leftovers = sorted(entry for entry in folder.iterdir() if entry.name.startswith(TEMPORARY_PREFIX))
    for entry in leftovers:
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    return leftovers


@contextlib.contextmanager
def annotate_errors(path: Path) -> Iterator[None]:
    """Convert a disk error to a `WriteError` that names `path`, for code that writes by other means."""
    try:
        yield
    except WriteError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise WriteError(
                error.errno,
                f"The disk is full: {path} was not written, and what was there before is untouched. "
                "Free some space and run the command again.",
            ) from error
        if error.errno in _REFUSED:
            raise WriteError(
                error.errno,
                f"{path} could not be written ({error.strerror or error}); what was there before is untouched. "
                "Choose another folder, or see to its permissions.",
            ) from error
        raise

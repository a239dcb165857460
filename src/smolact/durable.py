"""How anything reaches the disk for good: a temporary name, flush, fsync, rename, fsync of the folder.

A reader sees the old content or the new, never half of it, whatever is killed and whenever. Temporary names begin with
`.tmp-`, lie beside their target, and mean nothing to any reader: what a crash leaves behind is litter, not data.
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
    """A fresh temporary name in the folder of `path`."""
    return path.parent / f"{TEMPORARY_PREFIX}{secrets.token_hex(6)}-{path.name}"


def sync_file(path: Path) -> None:
    """Force the bytes of a closed file to the disk."""
    # Windows forces only what was opened for writing.
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Force a folder's entries (names made, renamed, removed in it) to the disk."""
    if os.name == "nt":  # Windows can't open folders; its renames are journaled
        return
    sync_file(path)


def make_folder(path: Path) -> None:
    """Make a folder and its parents, and force each new name to the disk.

    Raises:
        WriteError: the disk is full or refused, or a file is in the way.
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
                with contextlib.suppress(OSError):  # so that a second try makes and forces it again
                    folder.rmdir()
                raise
        if not path.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))


@contextlib.contextmanager
def replacing_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write; on success it becomes `path`, on any error it is removed.

    Raises:
        WriteError: the disk is full or refused; `path` is as it was.
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
    """Give a finished file its lasting name, replacing what has it: `staged` (on the same disk) becomes `path`.

    For writers that stage their files elsewhere, where `path` lies in a folder that others list.

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
    """Where the old folder of `path` lies while `exchange_folders` puts a new one in its place."""
    return path.with_name(f"{path.name}.replaced")


def replacement_interrupted(path: Path) -> bool:
    """Whether `exchange_folders` died between its two renames: nothing is at `path`, and the old folder lies beside."""
    return not path.exists() and backup_path(path).is_dir()


def exchange_folders(path: Path, fresh: Path) -> Path:
    """Give the name of the folder `path` to the finished folder `fresh` beside it; returns where the old one now is.

    No system can rename two folders at once. Whatever dies in between, the old folder is there under the name
    `backup_path(path)`, and `replacement_interrupted` tells.

    Raises:
        WriteError: the disk refused; `path` is as it was.
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


def leftovers_beside(path: Path) -> list[Path]:
    """What writers that died, or are at work now, have of `path` under temporary names beside it."""
    name = re.compile(rf"({re.escape(TEMPORARY_PREFIX)}[0-9a-f]{{12}}-)+{re.escape(path.name)}(\.replaced)?")
    return sorted(entry for entry in path.parent.iterdir() if name.fullmatch(entry.name))


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path`, whole or not at all."""
    with replacing_file(path) as temporary:
        temporary.write_bytes(data)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file, not durably by itself: inside `replacing_file` or `replacing_folder`, which name errors.

    Raises:
        OSError: the disk is full or refused; safetensors has an error of its own for that.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(dict(tensors), path, metadata=metadata)
    except SafetensorError as error:
        number = _OS_ERROR.search(str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8 to `path`, whole or not at all."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any, indent: int | None = 4) -> None:
    """Write `value` as JSON to `path`, whole or not at all. NaN and infinity are refused: they are not JSON."""
    write_text(path, json.dumps(value, indent=indent, allow_nan=False, ensure_ascii=False) + "\n")


def link(path: Path, target: str) -> None:
    """Make `path` a symbolic link to `target` (relative to its folder), replacing the link that may be there."""
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
    """Remove a folder so that a crash leaves it whole or gone: it loses its name first."""
    with annotate_errors(path):
        temporary = temporary_beside(path)
        os.rename(path, temporary)
        sync_folder(path.parent)
        shutil.rmtree(temporary)


def remove_litter(folder: Path) -> list[Path]:
    """Remove what interrupted writes left in `folder` (not below it), and return what was removed.

    Call it only where no other process writes: a write under way has a temporary name too.
    """
    litter = sorted(entry for entry in folder.iterdir() if entry.name.startswith(TEMPORARY_PREFIX))
    for entry in litter:
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    return litter


@contextlib.contextmanager
def annotate_errors(path: Path) -> Iterator[None]:
    """Turn an error of the disk into a `WriteError` that names `path`; for code that writes by other means."""
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

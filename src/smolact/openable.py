"""Determines which files of an untrusted folder may be opened: regular files inside it.

A link may lead anywhere on the disk, and opening a pipe or a device may block or have side effects. The one exception is
the Hub's cache, where a snapshot's files are links into the `blobs` folder of their own repository.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Collection, Iterator
from pathlib import Path

from smolact.hub import is_snapshot

_KINDS = {
    stat.S_IFIFO: "a pipe (FIFO)",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def check_regular(path: Path) -> None:
    """Raise an `OSError` unless `path` is a regular file or a link to one."""
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, f"it is {_kind(mode)}, and only regular files are opened", str(path))


def check_own(path: Path, folder: Path | None = None) -> None:
    """Raise an `OSError` unless `path` is a regular file inside `folder` (its parent when None)."""
    check_regular(path)
    if path.is_symlink() and (target := leads_out(folder or path.parent, path)) is not None:
        raise OSError(
            errno.EPERM,
            f"it is a link out of its folder, to {target}, and such files are not opened: put the file itself there (cp -L)",
            str(path),
        )


def own_files(folder: Path) -> list[Path]:
    """All files below `folder`, sorted.

    Raises:
        OSError: a file is not regular, or is a link out of the folder.
    """
    files = sorted(path for path in folder.rglob("*") if path.exists() and not path.is_dir())
    for path in files:
        check_own(path, folder)
    return files


def leads_out(folder: Path, path: Path) -> Path | None:
    """The real path of `path`, below `folder`, if links lead it out of the folder; None otherwise."""
    inside, target = os.path.realpath(folder), os.path.realpath(path)
    return None if _is_inside(target, inside, _blobs(inside)) else Path(target)


def faults_below(root: Path, names: Collection[str]) -> Iterator[tuple[str, str]]:
    """Entries among `names` of the folder `root`, and below them, that must not or can't be opened.

    Yields:
        the path relative to `root`, and the fault as a predicate for a sentence that begins with the path.
    """
    inside, resolve_link = os.path.realpath(root), _Links()
    blobs = _blobs(inside)
    visited: set[str] = set()
    folders = [str(root)]
    while folders:
        folder = folders.pop()
        try:
            entries = _entries(folder)
        except OSError as error:
            yield _relative(folder, root), f"can't be read ({error.strerror or error})"
            continue
        for entry in entries:
            if folder == str(root) and entry.name not in names:
                continue
            path, mode = entry.path, 0
            if entry.is_symlink():
                path = resolve_link(path)
                if path == inside:
                    continue  # a link to the folder itself, which is checked anyway
                if not _is_inside(path, inside, blobs):
                    yield _relative(entry.path, root), f"leads out of the folder, to {path}"
                    continue
                try:
                    mode = os.stat(path).st_mode  # noqa: PTH116
                except OSError:
                    continue  # a dangling link: reported when the file is needed
            if stat.S_ISDIR(mode) if mode else entry.is_dir():
                if path not in visited:
                    visited.add(path)
                    folders.append(path)
            elif not (stat.S_ISREG(mode) if mode else entry.is_file()):
                yield _relative(entry.path, root), f"is {_kind(Path(path).stat().st_mode)}, no regular file"


def _entries(folder: str) -> list[os.DirEntry[str]]:
    """The entries of `folder`, sorted. Raises unless they can be accessed, not only listed."""
    with os.scandir(folder) as entries:
        result = sorted(entries, key=lambda entry: entry.name)
    if not os.access(folder, os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), folder)
    return result


class _Links:
    """Resolves links like `os.path.realpath`, but each folder only once. Snapshots have thousands of links into one."""

    def __init__(self) -> None:
        self._folders: dict[str, str] = {}

    def __call__(self, link: str) -> str:
        folder, name = os.path.split(os.path.join(os.path.dirname(link), os.readlink(link)))  # noqa: PTH115, PTH118, PTH120
        if name in ("", ".", ".."):
            return os.path.realpath(link)
        if folder not in self._folders:
            self._folders[folder] = os.path.realpath(folder)
        target = os.path.join(self._folders[folder], name)  # noqa: PTH118
        return os.path.realpath(target) if os.path.islink(target) else target  # noqa: PTH114


def linked_folders(root: Path, names: Collection[str]) -> list[str]:
    """Links to folders among the entries `names` of the folder `root` and below them."""
    result = []
    for folder, subfolders, _ in os.walk(root):
        if Path(folder) == root:
            subfolders[:] = [name for name in subfolders if name in names]
        linked = [name for name in subfolders if Path(folder, name).is_symlink()]
        result += [Path(folder, name).relative_to(root).as_posix() for name in linked]
    return sorted(result)


def _relative(path: str, root: Path) -> str:
    return Path(os.path.relpath(path, root)).as_posix()


def _blobs(inside: str) -> str | None:
    """The `blobs` folder of the repository whose snapshot is or contains `inside`; None if there is none."""
    snapshots = (part for part in (Path(inside), *Path(inside).parents) if is_snapshot(part))
    return next((str(part.parent.parent / "blobs") for part in snapshots), None)


def _is_inside(target: str, inside: str, blobs: str | None) -> bool:
    return target == inside or target.startswith(inside + os.sep) or os.path.dirname(target) == blobs  # noqa: PTH120


def _kind(mode: int) -> str:
    return _KINDS.get(stat.S_IFMT(mode), "something special")

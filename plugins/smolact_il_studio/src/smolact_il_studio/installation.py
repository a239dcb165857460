"""Installation of files into a checkout, and their removal, which restores the checkout to the byte.

    checkout/.smolact-il-studio/manifest.json     digests of each file before and after
    checkout/.smolact-il-studio/before/PATH       the original file

A file is backed up and listed in the manifest before it is replaced, and each write is atomic: running the command again resumes an
interrupted installation, or undoes it.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from smolact import durable
from smolact.errors import ConfigError, NotFoundError
from smolact.files import read_json_object

STATE_FOLDER = ".smolact-il-studio"
_BEFORE = "before"
_MARKS = ("train.py", "policy/policy_loader.py", "configs/loader.py", "configs/policy")
"""The files by which a checkout is recognized."""


class Entry(NamedTuple):
    """A file in the manifest: the digest of the original (None: there was none), and the digests of smolact's versions."""

    before: str | None
    ours: tuple[str, ...]


class Row(NamedTuple):
    """The result for one file."""

    path: str
    done: str


def install(checkout: Path, files: Mapping[str, str], *, force: bool = False) -> list[Row]:
    """Write `files` (path to text) into a checkout, and back up the originals.

    Args:
        checkout: the folder that has `train.py`.
        force: also replace files that were changed since the installation, after copying them.

    Raises:
        NotFoundError: the folder is not a checkout.
        ConfigError: a file was changed since the installation, or is a symbolic link.
        WriteError: the disk is full or not writable.
    """
    checkout = _checkout(checkout)
    entries = _read_manifest(checkout)
    texts = {path: text.encode() for path, text in files.items()}
    _check_links(checkout, [*texts, *entries])
    changed = [path for path in texts if _is_changed(checkout, path, entries.get(path))]
    _check_changed(changed, force)
    for path, data in texts.items():
        entry = entries.get(path) or Entry(_back_up(checkout, path), ())
        entries[path] = entry._replace(ours=tuple(dict.fromkeys([*entry.ours, _digest(data)])))
    _write_manifest(checkout, entries)

    rows = []
    for path, data in texts.items():
        current = _read(checkout / path)
        if current == data:
            rows.append(Row(path, "as it was"))
            continue
        copy = _copy_changed(checkout / path) if path in changed else None
        _write(checkout / path, data)
        note = f"yours is kept: {copy.name}" if copy else "the one that was there is kept"
        rows.append(Row(path, "new" if current is None else f"replaced, {note}"))
    return rows


def uninstall(checkout: Path, *, force: bool = False) -> list[Row]:
    """Remove the files that `install` wrote, and restore the originals.

    Args:
        checkout: the folder that has `train.py`.
        force: also remove files that were changed since the installation, after copying them.

    Raises:
        NotFoundError: the folder is not a checkout, or nothing is installed there.
        ConfigError: a file was changed since the installation, or is a symbolic link.
        WriteError: the disk is full or not writable.
    """
    checkout = _checkout(checkout)
    entries = _read_manifest(checkout)
    if not entries:
        raise NotFoundError(
            f"Nothing of smolact is installed in {checkout}: there is no {STATE_FOLDER} in it."
        )
    _check_links(checkout, entries)
    changed = [path for path, entry in entries.items() if _is_changed(checkout, path, entry)]
    _check_changed(changed, force)
    rows = []
    for path, entry in entries.items():
        target, copy = checkout / path, None
        current = _read(target)
        if path in changed:
            copy = _copy_changed(target)
        if entry.before is None:
            target.unlink(missing_ok=True)
        elif current is None or _digest(current) != entry.before:
            _copy(_backup_path(checkout, path), target)
        done = "taken out" if entry.before is None else "as it was before"
        rows.append(Row(path, f"{done}, yours is kept: {copy.name}" if copy else done))
    for folder in sorted({(checkout / path).parent for path in entries}):
        _remove_if_empty(folder, checkout)
    durable.remove_folder(checkout / STATE_FOLDER)
    return rows


def _checkout(folder: Path) -> Path:
    missing = [mark for mark in _MARKS if not (folder / mark).exists()]
    if missing:
        raise NotFoundError(
            f"{folder} is no checkout of IL-Studio: it has no {', '.join(missing)}. Give the folder that `git clone` made."
        )
    return folder


def _check_links(checkout: Path, paths: Mapping[str, object] | list[str]) -> None:
    for path in paths:
        targets = [checkout / path, *(checkout / part for part in Path(path).parents if str(part) != ".")]
        for target in targets:
            if target.is_symlink():
                raise ConfigError(
                    f"{target} is a link: what it leads to would be changed elsewhere too. Make it a file of its own."
                )


def _is_changed(checkout: Path, path: str, entry: Entry | None) -> bool:
    """Whether an installed file is now neither smolact's nor the original."""
    current = _read(checkout / path)
    return current is not None and entry is not None and _digest(current) not in (entry.before, *entry.ours)


def _check_changed(changed: list[str], force: bool) -> None:
    if changed and not force:
        raise ConfigError(
            f"Changed since smolact wrote them: {', '.join(changed)}. With --force they are replaced, and yours are kept beside."
        )


def _back_up(checkout: Path, path: str) -> str | None:
    """Back up the file at `path`, and return its digest; None if there is none."""
    data = _read(checkout / path)
    if data is None:
        return None
    _copy(checkout / path, _backup_path(checkout, path))
    return _digest(data)


def _copy_changed(path: Path) -> Path:
    names = (f"{path.name}.yours{number or ''}" for number in range(1000))
    free = next(path.with_name(name) for name in names if not path.with_name(name).exists())
    _copy(path, free)
    return free


def _remove_if_empty(folder: Path, checkout: Path) -> None:
    """Remove a folder that is empty except for `__pycache__`."""
    if (
        folder == checkout
        or not folder.is_dir()
        or any(entry.name != "__pycache__" for entry in folder.iterdir())
    ):
        return
    durable.remove_folder(folder)


def _backup_path(checkout: Path, path: str) -> Path:
    return checkout / STATE_FOLDER / _BEFORE / path


def _write(path: Path, data: bytes) -> None:
    with durable.replacing_file(path) as temporary:
        temporary.write_bytes(data)
        if path.exists():
            shutil.copymode(path, temporary)


def _copy(source: Path, target: Path) -> None:
    with durable.replacing_file(target) as temporary:
        shutil.copyfile(source, temporary)
        shutil.copymode(source, temporary)


def _read(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _read_manifest(checkout: Path) -> dict[str, Entry]:
    path = checkout / STATE_FOLDER / "manifest.json"
    if not path.is_file():
        return {}
    raw = read_json_object(
        path, f"What was there before is in {path.parent / _BEFORE}: copy it back by hand."
    )
    return {name: Entry(entry["before"], tuple(entry["ours"])) for name, entry in raw["files"].items()}


def _write_manifest(checkout: Path, entries: Mapping[str, Entry]) -> None:
    folder = checkout / STATE_FOLDER
    durable.write_text(folder / ".gitignore", "*\n")
    files = {path: {"before": entry.before, "ours": list(entry.ours)} for path, entry in entries.items()}
    durable.write_json(folder / "manifest.json", {"files": files})

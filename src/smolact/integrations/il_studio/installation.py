"""Putting files into somebody's checkout, and taking them out again to the byte.

    checkout/.smolact-il-studio/manifest.json     what each file was, and what it became
    checkout/.smolact-il-studio/before/PATH       what was there

A file is copied aside before it is replaced, the manifest knows of it before it is touched, and each write is whole or not at all: an
installation that was interrupted goes on, or is undone, by running the command again.
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
"""What a checkout has."""


class Entry(NamedTuple):
    """A file of the manifest: the digest of what was there (None: nothing), and those of what we wrote."""

    before: str | None
    ours: tuple[str, ...]


class Row(NamedTuple):
    """What became of a file."""

    path: str
    done: str


def install(checkout: Path, files: Mapping[str, str], *, force: bool = False) -> list[Row]:
    """Write `files` (path to text) into a checkout, and keep what was there.

    Args:
        checkout: the folder that has `train.py`.
        files: what to write.
        force: replace files that were changed since they were installed; the changed ones are kept beside.

    Raises:
        NotFoundError: the folder is no checkout.
        ConfigError: a file was changed since it was installed, or is a link.
        WriteError: the disk is full or refused.
    """
    checkout = _checkout(checkout)
    entries = _read_manifest(checkout)
    texts = {path: text.encode() for path, text in files.items()}
    _refuse_links(checkout, [*texts, *entries])
    changed = [path for path in texts if _is_changed(checkout, path, entries.get(path))]
    _refuse_changed(changed, force)
    for path, data in texts.items():
        entry = entries.get(path) or Entry(_keep(checkout, path), ())
        entries[path] = entry._replace(ours=tuple(dict.fromkeys([*entry.ours, _digest(data)])))
    _write_manifest(checkout, entries)

    rows = []
    for path, data in texts.items():
        there = _read(checkout / path)
        if there == data:
            rows.append(Row(path, "as it was"))
            continue
        kept = _keep_changed(checkout / path) if path in changed else None
        _write(checkout / path, data)
        told = f"yours is kept: {kept.name}" if kept else "the one that was there is kept"
        rows.append(Row(path, "new" if there is None else f"replaced, {told}"))
    return rows


def uninstall(checkout: Path, *, force: bool = False) -> list[Row]:
    """Take out what `install` wrote, and put back what was there.

    Args:
        checkout: the folder that has `train.py`.
        force: also take out files that were changed since; the changed ones are kept beside.

    Raises:
        NotFoundError: the folder is no checkout, or nothing is installed there.
        ConfigError: a file was changed since it was installed, or is a link.
        WriteError: the disk is full or refused.
    """
    checkout = _checkout(checkout)
    entries = _read_manifest(checkout)
    if not entries:
        raise NotFoundError(
            f"Nothing of smolact is installed in {checkout}: there is no {STATE_FOLDER} in it."
        )
    _refuse_links(checkout, entries)
    changed = [path for path, entry in entries.items() if _is_changed(checkout, path, entry)]
    _refuse_changed(changed, force)
    rows = []
    for path, entry in entries.items():
        target, kept = checkout / path, None
        there = _read(target)
        if path in changed:
            kept = _keep_changed(target)
        if entry.before is None:
            target.unlink(missing_ok=True)
        elif there is None or _digest(there) != entry.before:
            _copy(_aside(checkout, path), target)
        done = "taken out" if entry.before is None else "as it was before"
        rows.append(Row(path, f"{done}, yours is kept: {kept.name}" if kept else done))
    for folder in sorted({(checkout / path).parent for path in entries}):
        _remove_if_ours(folder, checkout)
    durable.remove_folder(checkout / STATE_FOLDER)
    return rows


def _checkout(folder: Path) -> Path:
    missing = [mark for mark in _MARKS if not (folder / mark).exists()]
    if missing:
        raise NotFoundError(
            f"{folder} is no checkout of IL-Studio: it has no {', '.join(missing)}. Give the folder that `git clone` made."
        )
    return folder


def _refuse_links(checkout: Path, paths: Mapping[str, object] | list[str]) -> None:
    for path in paths:
        places = [checkout / path, *(checkout / part for part in Path(path).parents if str(part) != ".")]
        for place in places:
            if place.is_symlink():
                raise ConfigError(
                    f"{place} is a link: what it leads to would be changed elsewhere too. Make it a file of its own."
                )


def _is_changed(checkout: Path, path: str, entry: Entry | None) -> bool:
    """Whether a file that we have written is now neither ours nor what was there before."""
    there = _read(checkout / path)
    return there is not None and entry is not None and _digest(there) not in (entry.before, *entry.ours)


def _refuse_changed(changed: list[str], force: bool) -> None:
    if changed and not force:
        raise ConfigError(
            f"Changed since smolact wrote them: {', '.join(changed)}. With --force they are replaced, and yours are kept beside."
        )


def _keep(checkout: Path, path: str) -> str | None:
    """Copy what is at `path` aside, and return its digest; None if there is nothing."""
    data = _read(checkout / path)
    if data is None:
        return None
    _copy(checkout / path, _aside(checkout, path))
    return _digest(data)


def _keep_changed(path: Path) -> Path:
    names = (f"{path.name}.yours{number or ''}" for number in range(1000))
    free = next(path.with_name(name) for name in names if not path.with_name(name).exists())
    _copy(path, free)
    return free


def _remove_if_ours(folder: Path, checkout: Path) -> None:
    """Remove a folder that holds nothing any more but what Python compiled."""
    if (
        folder == checkout
        or not folder.is_dir()
        or any(entry.name != "__pycache__" for entry in folder.iterdir())
    ):
        return
    durable.remove_folder(folder)


def _aside(checkout: Path, path: str) -> Path:
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

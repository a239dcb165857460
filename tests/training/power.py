"""A disk that forgets: what a folder would hold after a power cut, at every moment of a piece of work.

The worst that POSIX allows: a file has the bytes of its last fsync (none before the first), and a folder the entries of its
last fsync, or those of now, or one folder these and another those.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

Entries = dict[str, "int | str"]
"""Name to the number of a file or folder, or to the target of a link."""


@dataclass(frozen=True)
class Moment:
    """What is in memory and what is on the disk, just after an operation."""

    done: str
    live: dict[int, Entries]
    synced: dict[int, Entries]
    content: dict[int, bytes]

    def write_to(self, folder: Path, choose: Callable[[], bool]) -> None:
        """Make the folder as it would be found; `choose` says for each folder whether its newest entries made it."""
        self._write(0, folder, choose)

    def _write(self, number: int, folder: Path, choose: Callable[[], bool]) -> None:
        folder.mkdir()
        newest = choose() and number in self.live
        for name, entry in (self.live if newest else self.synced).get(number, {}).items():
            if isinstance(entry, str):
                (folder / name).symlink_to(entry)
            elif entry in self.live or entry in self.synced:
                self._write(entry, folder / name, choose)
            else:
                (folder / name).write_bytes(self.content.get(entry, b""))


class Disk:
    """Watches a folder; `moments` are all that there were."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.numbers: dict[int, int] = {}  # of inodes in use: a number is never given twice, an inode may be
        self.given = 0
        self.live: dict[int, Entries] = {}
        self.synced: dict[int, Entries] = {}
        self.content: dict[int, bytes] = {}
        self.moments: list[Moment] = []
        self.look()
        self.synced = {number: dict(entries) for number, entries in self.live.items()}
        for path in root.rglob("*"):
            if path.is_file() and not path.is_symlink():
                self.content[self.number(path)] = path.read_bytes()

    def number(self, path: Path) -> int:
        inode = path.stat().st_ino
        if inode not in self.numbers:
            self.numbers[inode] = self.given
            self.given += 1
        return self.numbers[inode]

    def look(self) -> None:
        """Bring `live` up to date."""
        self.live, seen = {}, set()
        for folder, _, _ in os.walk(self.root):
            seen.add(Path(folder).stat().st_ino)
            entries: Entries = {}
            self.live[self.number(Path(folder))] = entries
            for path in sorted(Path(folder).iterdir()):
                if path.is_symlink():
                    entries[path.name] = str(path.readlink())
                else:
                    entries[path.name] = self.number(path)
                    seen.add(path.stat().st_ino)
        self.numbers = {inode: number for inode, number in self.numbers.items() if inode in seen}

    def note(self, done: str) -> None:
        self.look()
        synced = {number: dict(entries) for number, entries in self.synced.items()}
        self.moments.append(Moment(done, self.live, synced, dict(self.content)))

    def sync(self, path: Path) -> None:
        self.look()
        if path.is_dir():
            self.synced[self.number(path)] = dict(self.live[self.number(path)])
        else:
            self.content[self.number(path)] = path.read_bytes()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Within the block every operation of this process is noted, before and after."""
        opened: dict[int, Path] = {}
        real_open, real_fsync = os.open, os.fsync

        def watched_open(path: Any, *args: Any, dir_fd: int | None = None, **kwargs: Any) -> int:
            descriptor = real_open(path, *args, dir_fd=dir_fd, **kwargs)
            opened[descriptor] = Path(path) if dir_fd is None else opened[dir_fd] / path
            return descriptor

        def watched_fsync(descriptor: int) -> None:
            self.note("before fsync")
            real_fsync(descriptor)
            self.sync(opened[descriptor])
            self.note("fsync")

        def watched(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
            def stand_in(*args: Any, **kwargs: Any) -> Any:
                self.note(f"before {name}")
                result = real(*args, **kwargs)
                self.note(name)
                return result

            return stand_in

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "open", watched_open)
            patch.setattr(os, "fsync", watched_fsync)
            for name in ("rename", "replace", "mkdir", "symlink", "unlink", "rmdir"):
                patch.setattr(os, name, watched(name, getattr(os, name)))
            yield


def outcomes(seed: int) -> tuple[Callable[[], bool], ...]:
    """What a crash makes of folders that were not synced: nothing new is there, all of it, or by chance."""
    chance = random.Random(seed)
    return (lambda: False, lambda: True, lambda: chance.random() < 0.5)

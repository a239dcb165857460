"""`FrameStore`: an array for each frame of a dataset, memory-mapped, each with a checksum; filled in any order, once.

Two files: the arrays one after the other (sparse until they are written), and a checksum a frame, 0 where there is none yet.
Arrays reach the disk before their checksums do, so that a kill or a power cut leaves frames that are whole or not there.
"""

# n frames asked for, … the shape of one array.

from __future__ import annotations

import os
import threading
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smolact import durable
from smolact.errors import DatasetError
from smolact.openable import check_regular

Ints = NDArray[np.int64]

_AT_ONCE = 64 * 2**20  # bytes that one thread checks in a piece


class FrameStore:
    """Arrays of one shape and type, one a frame, in two files of a folder.

    Args:
        folder: is made if it is not there. What its arrays are made of must be in its name: nothing here tells.
        name: of the files.
        shape: of one array.
        dtype: of its numbers.
        frames: how many there are at most.

    Raises:
        WriteError: the disk is full or refused.
    """

    def __init__(
        self, folder: Path, name: str, shape: Sequence[int], dtype: np.dtype[Any] | str, frames: int
    ) -> None:
        self.folder, self.name, self.frames = folder, name, frames
        self.shape, self.dtype = tuple(shape), np.dtype(dtype)
        self.bytes_of_one = int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize
        self._arrays, self._sums = folder / f"{name}.arrays", folder / f"{name}.checksums"
        durable.make_folder(folder)
        for path, size in ((self._arrays, frames * self.bytes_of_one), (self._sums, frames * 4)):
            with durable.annotate_errors(path):
                if path.exists():
                    check_regular(path)
                file = path.open("ab")
            with durable.annotate_errors(path), file:
                if file.tell() != size:  # new, or cut off: what is missing has no checksum, or a wrong one
                    file.truncate(size)
        self._mapped: NDArray[Any] | None = None
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        """Travels without its map: each process opens its own."""
        return {**self.__dict__, "_mapped": None, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def read(self, frames: Ints) -> NDArray[Any]:
        """The arrays of frames that are there, (n, …), a copy. Whether they are, `missing` tells."""
        found: NDArray[Any] = self._map()[frames]
        return found

    def missing(self, frames: Iterable[int], progress: Callable[[int, int], None] | None = None) -> list[int]:
        """Those of the frames that are not there, or not what was written; reads all of them.

        Args:
            frames: their numbers.
            progress: told how many of how many were looked at.
        """
        asked = list(frames)
        sums, arrays = self._checksums(), self._map()
        piece = max(1, _AT_ONCE // max(1, self.bytes_of_one))
        pieces = [asked[first : first + piece] for first in range(0, len(asked), piece)]

        def wrong(numbers: list[int]) -> list[int]:
            return [n for n in numbers if not sums[n] or sums[n] != _checksum(arrays[n])]

        found: list[int] = []
        with ThreadPoolExecutor(4) as threads:
            for number, part in enumerate(threads.map(wrong, pieces), 1):
                found += part
                if progress:
                    progress(min(number * piece, len(asked)), len(asked))
        return found

    def write(self, frames: Sequence[int] | Ints, arrays: NDArray[Any]) -> None:
        """Put in the arrays (n, …) of `frames`, for good. Several processes may, each frames of its own.

        Raises:
            DatasetError: they have another shape or type.
            WriteError: the disk is full or refused; what was there before is as it was.
        """
        if arrays.shape != (len(frames), *self.shape) or arrays.dtype != self.dtype:
            raise DatasetError(
                f"{self._arrays}: expected {(len(frames), *self.shape)} {self.dtype}, found {arrays.shape} {arrays.dtype}."
            )
        arrays = np.ascontiguousarray(arrays)
        with durable.annotate_errors(self._arrays), self._arrays.open("r+b") as file:
            for number, array in zip(frames, arrays, strict=True):
                file.seek(
                    int(number) * self.bytes_of_one
                )  # not through the map: a full disk would be a signal there
                file.write(array.data)
            file.flush()
            os.fsync(file.fileno())
        with durable.annotate_errors(self._sums), self._sums.open("r+b") as file:
            for number, array in zip(frames, arrays, strict=True):
                file.seek(int(number) * 4)
                file.write(np.uint32(_checksum(array)).tobytes())
            file.flush()
            os.fsync(file.fileno())

    def _map(self) -> NDArray[Any]:
        if self._mapped is None:
            with self._lock:
                # Not `np.memmap`: its subclass makes every slice slower.
                mapped = np.memmap(self._arrays, self.dtype, "r", shape=(self.frames, *self.shape))
                self._mapped = np.asarray(mapped)
        return self._mapped

    def _checksums(self) -> NDArray[np.uint32]:
        return np.fromfile(self._sums, np.uint32)


def _checksum(array: NDArray[Any]) -> int:
    return zlib.crc32(array.data) or 1  # 0 is for what is not there

"""`FrameStore`: a memory-mapped array for each frame of a dataset, with checksums, written once in any order.

The arrays (a sparse file) are synced to disk before their checksums (a second file, 0 for a missing array), so that after a kill
or a power failure a frame is either complete or missing.
"""

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

_PIECE_BYTES = 64 * 2**20  # bytes that a thread checks at once


class FrameStore:
    """Arrays of one shape and dtype, one for each frame, in two files of a folder.

    Args:
        folder: created if missing; its name must identify the source of the arrays.
        shape, dtype: of one array.
        frames: the maximum number of frames.

    Raises:
        WriteError: the disk is full or refused.
    """

    def __init__(
        self, folder: Path, name: str, shape: Sequence[int], dtype: np.dtype[Any] | str, frames: int
    ) -> None:
        self.folder, self.name, self.frames = folder, name, frames
        self.shape, self.dtype = tuple(shape), np.dtype(dtype)
        self.frame_bytes = int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize
        self._arrays, self._sums = folder / f"{name}.arrays", folder / f"{name}.checksums"
        durable.make_folder(folder)
        for path, size in ((self._arrays, frames * self.frame_bytes), (self._sums, frames * 4)):
            with durable.annotate_errors(path):
                if path.exists():
                    check_regular(path)
                file = path.open("ab")
            with durable.annotate_errors(path), file:
                if file.tell() != size:  # new or truncated: the checksums show it
                    file.truncate(size)
        self._mapped: NDArray[Any] | None = None
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        """The state without the memory map, which each process opens itself."""
        return {**self.__dict__, "_mapped": None, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def read(self, frames: Ints) -> NDArray[Any]:
        """A copy (n, …) of the arrays of n existing frames; see `missing`."""
        arrays: NDArray[Any] = self._map()[frames]
        return arrays

    def missing(self, frames: Iterable[int], progress: Callable[[int, int], None] | None = None) -> list[int]:
        """The missing or corrupt ones of `frames`; `progress` is called with the number checked and the total."""
        numbers = list(frames)
        sums, arrays = np.fromfile(self._sums, np.uint32), self._map()
        size = max(1, _PIECE_BYTES // max(1, self.frame_bytes))
        pieces = [numbers[first : first + size] for first in range(0, len(numbers), size)]

        def corrupt(piece: list[int]) -> list[int]:
            return [n for n in piece if not sums[n] or sums[n] != _checksum(arrays[n])]

        invalid: list[int] = []
        with ThreadPoolExecutor(4) as threads:
            for number, part in enumerate(threads.map(corrupt, pieces), 1):
                invalid += part
                if progress:
                    progress(min(number * size, len(numbers)), len(numbers))
        return invalid

    def write(self, frames: Sequence[int] | Ints, arrays: NDArray[Any]) -> None:
        """Write the arrays (n, …) of `frames` durably; processes may write different frames.

        Raises:
            DatasetError: the arrays have another shape or dtype.
            WriteError: the disk is full or refused; earlier arrays are unchanged.
        """
        if arrays.shape != (len(frames), *self.shape) or arrays.dtype != self.dtype:
            raise DatasetError(
                f"{self._arrays}: expected {(len(frames), *self.shape)} {self.dtype}, found {arrays.shape} {arrays.dtype}."
            )
        arrays = np.ascontiguousarray(arrays)
        with durable.annotate_errors(self._arrays), self._arrays.open("r+b") as file:
            for number, array in zip(frames, arrays, strict=True):
                file.seek(int(number) * self.frame_bytes)  # on the map a full disk raises SIGBUS
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
                # Slices of the subclass `np.memmap` are slower.
                mapped = np.memmap(self._arrays, self.dtype, "r", shape=(self.frames, *self.shape))
                self._mapped = np.asarray(mapped)
        return self._mapped


def _checksum(array: NDArray[Any]) -> int:
    return zlib.crc32(array.data) or 1  # 0 marks a missing array

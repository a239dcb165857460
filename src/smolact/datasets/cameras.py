"""Camera images of a dataset, read by episode and frame from video files or image columns.

Open files and caches belong to one process. A forked worker abandons inherited ones without closing them, because the
parent still reads from them; a pickled object travels without them. Both open their own files on first use.
"""

from __future__ import annotations

import contextlib
import io
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image as Pillow

from smolact.datasets.format import Feature
from smolact.datasets.tables import open_parquet, read_groups
from smolact.datasets.video import Image, VideoReader
from smolact.errors import DatasetError, VideoError

Ints = NDArray[np.int64]
Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")

OPEN_FILES = 32
CACHED_IMAGE_BYTES = 256 * 2**20  # encoded, per process


class ForkSafeLRUCache(Generic[Key, Value]):
    """An LRU cache that creates values on demand, for one thread at a time; each process has its own entries.

    Args:
        make: creates the value of a key.
        budget: the maximal total weight; the latest value is always kept.
        weigh: the weight of a value; 1 each when None.
        drop: called with each evicted value.
    """

    def __init__(
        self,
        make: Callable[[Key], Value],
        budget: int,
        weigh: Callable[[Value], int] | None = None,
        drop: Callable[[Value], None] | None = None,
    ) -> None:
        self._make, self._budget, self._weigh, self._drop = make, budget, weigh, drop
        self._abandoned: list[Any] = []
        self._reset()

    def __call__(self, key: Key) -> Value:
        """The value of `key`."""
        if self._process != os.getpid():
            self._abandoned.append(self._values)  # destroying it would close the parent's files
            self._reset()
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
            value = self._values[key] = self._make(key)
            self._weight += self._weigh(value) if self._weigh else 1
            while self._weight > self._budget and len(self._values) > 1:
                _, old = self._values.popitem(last=False)
                self._weight -= self._weigh(old) if self._weigh else 1
                if self._drop:
                    self._drop(old)
            return value

    def __len__(self) -> int:
        return len(self._values)

    def _reset(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._values: OrderedDict[Key, Value] = OrderedDict()
        self._weight = 0

    def __reduce__(self) -> tuple[Any, ...]:
        return ForkSafeLRUCache, (self._make, self._budget, self._weigh, self._drop)


class Camera(Protocol):
    """The image source of one camera."""

    def frames(self, episodes: Ints, numbers: Ints) -> Image:
        """The frames `numbers` (from 0 in each episode) of `episodes`, (n, H, W, 3) uint8."""
        ...


def video_readers() -> ForkSafeLRUCache[Path, VideoReader]:
    """The video readers shared by all cameras of a dataset: file to reader."""
    return ForkSafeLRUCache(VideoReader, OPEN_FILES, drop=VideoReader.close)


@dataclass(frozen=True)
class VideoCamera:
    """A camera stored as video: episode to file below `root` (`paths`) and to its first frame in that file (`first_frames`)."""

    key: str
    feature: Feature
    root: Path
    readers: ForkSafeLRUCache[Path, VideoReader]
    paths: Mapping[int, str]
    first_frames: Mapping[int, int]

    def frames(self, episodes: Ints, numbers: Ints) -> Image:
        """See `Camera`. Each file is read once, in frame order, and adjacent frames are decoded together."""
        channels, height, width = self.feature.image_shape
        images: Image = np.empty((len(numbers), height, width, channels), dtype=np.uint8)
        group_by_file: dict[str, list[int]] = {}
        for slot, episode in enumerate(episodes.tolist()):
            group_by_file.setdefault(self.paths[episode], []).append(slot)
        for path, slots in group_by_file.items():
            wanted = np.array([self.first_frames[int(episodes[slot])] for slot in slots]) + numbers[slots]
            try:
                decoded = self.readers(self.root / path).frames(wanted)
            except VideoError as error:
                raise VideoError(f"'{self.key}': {error}") from error
            if decoded.shape[1:] != images.shape[1:]:
                raise VideoError(
                    f"{path} has frames of (height, width, channels) {decoded.shape[1:]}, and other videos of '{self.key}' have "
                    f"{images.shape[1:]}. Fetch the dataset again, or delete the episodes of one of them: smolact dataset delete"
                )
            images[slots] = decoded
        return images


class Columns:
    """The image columns of a dataset's data files, read one row group at a time."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._files: ForkSafeLRUCache[str, Any] = ForkSafeLRUCache(self._open, OPEN_FILES)
        self._groups: ForkSafeLRUCache[tuple[str, int, str], Any] = ForkSafeLRUCache(
            self._read, CACHED_IMAGE_BYTES, weigh=attrgetter("nbytes")
        )

    def image(self, path: str, key: str, row: int) -> bytes | None:
        """The encoded image in a row of the column `key` of the file `path`, relative to the root."""
        _, ends = self._files(path)
        group = int(np.searchsorted(ends, row, side="right"))
        data: bytes | None = self._groups((path, group, key))[
            row - int(ends[group - 1] if group else 0)
        ].as_py()
        return data

    def _open(self, path: str) -> tuple[Any, Ints]:
        file = open_parquet(self._root / path)
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
        return file, np.cumsum(sizes, dtype=np.int64)

    def _read(self, key: tuple[str, int, str]) -> Any:
        path, group, name = key
        column = read_groups(self._files(path)[0], self._root / path, [name], [group]).column(name)
        if not pa.types.is_struct(column.type) or column.type.get_field_index("bytes") < 0:
            raise DatasetError(
                f"{self._root / path}: the image column '{name}' holds {column.type}, expected {{bytes, path}}. "
                "Fetch the dataset again."
            )
        return column.combine_chunks().field("bytes")


@dataclass(frozen=True)
class ImageCamera:
    """A camera stored as PNG or JPEG in the data files: episode to file (`paths`) and to its row numbers (`rows`)."""

    key: str
    feature: Feature
    columns: Columns
    paths: Mapping[int, str]
    rows: Mapping[int, Ints]

    def frames(self, episodes: Ints, numbers: Ints) -> Image:
        """See `Camera`."""
        channels, height, width = self.feature.image_shape
        images: Image = np.empty((len(numbers), height, width, channels), dtype=np.uint8)
        for slot, (episode, number) in enumerate(zip(episodes.tolist(), numbers.tolist(), strict=True)):
            path, row = self.paths[episode], int(self.rows[episode][number])
            data = self.columns.image(path, self.key, row)
            images[slot] = decode_image(data, (height, width), f"{path}, row {row}, '{self.key}'")
        return images


def decode_image(data: bytes | None, size: tuple[int, int], where: str) -> Image:
    """Decode a PNG or JPEG to (H, W, 3) uint8; its size is checked before decoding.

    Raises:
        DatasetError: the image is missing, corrupt, or of another size than (height, width) `size`.
    """
    with _open_image(data, size, where, ("PNG", "JPEG")) as picture:
        return np.asarray(picture.convert("RGB"))


def check_depth_image(data: bytes | None, shape: tuple[int, int, int], where: str) -> None:
    """Raise unless an image of a depth camera is intact; its values are not checked.

    Raises:
        DatasetError: the image is missing, corrupt, or of another (channels, height, width) than `shape`.
    """
    with _open_image(data, shape[1:], where, ("PNG", "TIFF", "JPEG")) as picture:
        picture.load()
        channels = len(picture.getbands())
    if channels != shape[0]:
        raise DatasetError(
            f"{where} is an image of {channels} channels, but meta/info.json says {shape[0]}: it is not the depth that was "
            "recorded. Fetch the dataset again, or leave the camera out: smolact dataset remove-feature"
        )


@contextlib.contextmanager
def _open_image(
    data: bytes | None, size: tuple[int, int], where: str, formats: tuple[str, ...]
) -> Iterator[Pillow.Image]:
    """Open an image after checking its size."""
    if not data:
        raise DatasetError(
            f"{where} holds no image: it names a file outside the dataset. Fetch the dataset again."
        )
    try:
        with Pillow.open(io.BytesIO(data), formats=formats) as picture:
            if picture.size != size[::-1]:
                raise DatasetError(
                    f"{where} is an image of (height, width) {picture.size[::-1]}, but meta/info.json says {size}. "
                    "Repair info.json, or fetch the dataset again."
                )
            yield picture
    except (OSError, SyntaxError, ValueError, Pillow.DecompressionBombError) as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(
            f"{where} is not a whole {' or '.join(formats)} ({error}). Fetch the dataset again."
        ) from error


def encode_image(image: Image) -> bytes:
    """Encode an (H, W, 3) uint8 image as PNG."""
    buffer = io.BytesIO()
    Pillow.fromarray(image).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()

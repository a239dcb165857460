"""The pictures of a dataset, by episode and frame: out of video files, or out of image columns.

What is open or cached belongs to one process. A forked worker abandons what it inherited (without closing it: the
parent still reads there), a pickled source travels empty; either opens its own files when first asked.
"""

from __future__ import annotations

import contextlib
import io
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
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
CACHED_IMAGE_BYTES = 256 * 2**20  # encoded, a process


class ForkSafeLRUCache(Generic[Key, Value]):
    """The most recently used values, made on demand, within a budget; one thread at a time, each process its own.

    Args:
        make: what makes a value.
        budget: how much is kept, counted by `weigh`; the latest value is kept in any case.
        weigh: what a value counts; 1 each when None.
        drop: what is done to a value that leaves.
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
        self._begin()

    def __call__(self, key: Key) -> Value:
        """The value of `key`."""
        if self._process != os.getpid():
            self._abandoned.append(self._values)  # destroying it would close what the parent reads
            self._begin()
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

    def _begin(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._values: OrderedDict[Key, Value] = OrderedDict()
        self._weight = 0

    def __reduce__(self) -> tuple[Any, ...]:
        return ForkSafeLRUCache, (self._make, self._budget, self._weigh, self._drop)


class Camera(Protocol):
    """Where the pictures of one camera come from."""

    def frames(self, episodes: Ints, numbers: Ints) -> Image:
        """The frames `numbers` (counted from 0 in each episode) of `episodes`, (n, H, W, 3) uint8."""
        ...


class Videos:
    """The video readers that all cameras of a dataset share."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._readers: ForkSafeLRUCache[str, VideoReader] = ForkSafeLRUCache(
            self._read, OPEN_FILES, drop=VideoReader.close
        )

    def reader(self, path: str) -> VideoReader:
        """The reader of the file `path`, relative to the root."""
        return self._readers(path)

    def _read(self, path: str) -> VideoReader:
        return VideoReader(self._root / path)


class VideoCamera:
    """A camera stored as video: `paths` and `first_frames` say where each episode begins."""

    def __init__(
        self,
        key: str,
        feature: Feature,
        videos: Videos,
        paths: Mapping[int, str],
        first_frames: Mapping[int, int],
    ) -> None:
        self._key, self._shape = key, feature.image_shape
        self._videos, self._paths, self._first = videos, paths, first_frames

    def frames(self, episodes: Ints, numbers: Ints) -> Image:
        """See `Camera`. Each file is visited once, in order, and what lies together is decoded together."""
        channels, height, width = self._shape
        images: Image = np.empty((len(numbers), height, width, channels), dtype=np.uint8)
        by_file: dict[str, list[int]] = {}
        for place, episode in enumerate(episodes.tolist()):
            by_file.setdefault(self._paths[episode], []).append(place)
        for path, places in by_file.items():
            inside = np.array([self._first[int(episodes[place])] for place in places]) + numbers[places]
            try:
                found = self._videos.reader(path).frames(inside)
            except VideoError as error:
                raise VideoError(f"'{self._key}': {error}") from error
            if found.shape[1:] != images.shape[1:]:
                raise VideoError(
                    f"{path} has frames of (height, width, channels) {found.shape[1:]}, and other videos of '{self._key}' have "
                    f"{images.shape[1:]}. Fetch the dataset again, or delete the episodes of one of them: smolact dataset delete"
                )
            images[places] = found
        return images


class Columns:
    """The image columns of a dataset's data files, read a row group at a time."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._files: ForkSafeLRUCache[str, Any] = ForkSafeLRUCache(self._open, OPEN_FILES)
        self._groups: ForkSafeLRUCache[tuple[str, int, str], Any] = ForkSafeLRUCache(
            self._read, CACHED_IMAGE_BYTES, weigh=_bytes_of
        )

    def images(self, path: str, key: str, rows: Sequence[int]) -> list[bytes | None]:
        """The encoded images in `rows` of the column `key` of the file `path`, relative to the root."""
        _, ends = self._files(path)
        found = []
        for row in rows:
            group = int(np.searchsorted(ends, row, side="right"))
            begin = int(ends[group - 1]) if group else 0
            found.append(self._groups((path, group, key))[row - begin].as_py())
        return found

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


def _bytes_of(column: Any) -> int:
    return int(column.nbytes)


class ImageCamera:
    """A camera stored as PNG or JPEG in the data files: `paths` and `rows` say where each episode's frames are."""

    def __init__(
        self,
        key: str,
        feature: Feature,
        columns: Columns,
        paths: Mapping[int, str],
        rows: Mapping[int, Ints],
    ) -> None:
        self._key, self._shape = key, feature.image_shape
        self._columns, self._paths, self._rows = columns, paths, rows

    def frames(self, episodes: Ints, numbers: Ints) -> Image:
        """See `Camera`."""
        channels, height, width = self._shape
        images: Image = np.empty((len(numbers), height, width, channels), dtype=np.uint8)
        for place, (episode, number) in enumerate(zip(episodes.tolist(), numbers.tolist(), strict=True)):
            path, row = self._paths[episode], int(self._rows[episode][number])
            (data,) = self._columns.images(path, self._key, [row])
            images[place] = decode_image(data, (height, width), f"{path}, row {row}, '{self._key}'")
        return images


def decode_image(data: bytes | None, size: tuple[int, int], where: str) -> Image:
    """A PNG or JPEG as (H, W, 3) uint8; its size is checked before it is decoded.

    Raises:
        DatasetError: there is no image, it is damaged, or of another size than (height, width) `size`.
    """
    with _opened(data, size, where, ("PNG", "JPEG")) as picture:
        return np.asarray(picture.convert("RGB"))


def check_depth_image(data: bytes | None, shape: tuple[int, int, int], where: str) -> None:
    """See that an image of a depth camera is whole; its numbers stay as they are.

    Raises:
        DatasetError: there is no image, it is damaged, or of another (channels, height, width) than `shape`.
    """
    with _opened(data, shape[1:], where, ("PNG", "TIFF", "JPEG")) as picture:
        picture.load()
        found = len(picture.getbands())
    if found != shape[0]:
        raise DatasetError(
            f"{where} is an image of {found} channels, but meta/info.json says {shape[0]}: it is not the depth that was "
            "recorded. Fetch the dataset again, or leave the camera out: smolact dataset remove-feature"
        )


@contextlib.contextmanager
def _opened(
    data: bytes | None, size: tuple[int, int], where: str, formats: tuple[str, ...]
) -> Iterator[Pillow.Image]:
    """An image whose size is checked before it is decoded."""
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
    """An (H, W, 3) uint8 image as PNG."""
    buffer = io.BytesIO()
    Pillow.fromarray(image).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()

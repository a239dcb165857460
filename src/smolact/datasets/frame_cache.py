"""Cache of decoded images: a sample is copied instead of decoded, bit for bit the same.

cache = FrameCache(dataset.meta)
cache.fill(dataset)  # decodes missing frames
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from smolact.datasets.cameras import Camera
from smolact.datasets.faults import Progress, no_progress
from smolact.datasets.metadata import LeRobotDatasetMetadata
from smolact.datasets.reader import LeRobotDataset
from smolact.datasets.store import FrameStore
from smolact.datasets.unreadable import Unreadable, unreadable_error
from smolact.datasets.video import Image
from smolact.errors import DatasetError, WriteError
from smolact.hub import is_snapshot

Ints = NDArray[np.int64]
Load = Callable[["FrameRuns"], Iterable["DecodedRun"]]
"""Yields the items of a dataset, in order."""

RUN_LENGTH = 32
"""The most consecutive frames that are decoded together."""
_SAMPLE_BYTES = 4096  # bytes at both ends of a file that are hashed


class FrameCache:
    """The cached images of a dataset's cameras.

    Args:
        cameras: the cameras to cache; all but depth cameras when None.
        fit: (width, height) to scale images down to, with their aspect ratio, rounded to uint8; None for the exact images.
        folder: the parent folder; one next to the dataset when None.
        max_bytes: the size limit; further frames are decoded each time.

    Raises:
        WriteError: the disk is full or refused.
    """

    def __init__(
        self,
        meta: LeRobotDatasetMetadata,
        cameras: Sequence[str] | None = None,
        fit: tuple[int, int] | None = None,
        folder: Path | None = None,
        max_bytes: float = float("inf"),
    ) -> None:
        self.meta, self.fit, self.max_bytes = meta, fit, max_bytes
        name = f"frames-{fingerprint(meta)}" + (f"-{fit[0]}x{fit[1]}" if fit else "")
        self.folder = (folder or cache_folder(meta.root)) / name
        self.stores = {}
        for key in meta.color_keys if cameras is None else cameras:
            channels, height, width = meta.features[key].image_shape
            height, width = _fitted_size((height, width), fit)
            shape = (channels, height, width)
            self.stores[key] = FrameStore(self.folder, key, shape, "uint8", meta.total_frames)
        self.is_cached = np.zeros(meta.total_frames, dtype=bool)
        self._starts = meta.episodes.from_index

    def fill(
        self,
        dataset: LeRobotDataset,
        *,
        rank: int = 0,
        processes: int = 1,
        load: Load | None = None,
        progress: Progress = no_progress,
        unreadable: list[Unreadable] | None = None,
    ) -> int:
        """Cache a dataset's images up to the size limit, and make it read them from here.

        Args:
            dataset: a dataset of this metadata.
            rank, processes: each process caches a part; all must finish before samples are read.
            load, progress: see `fill_stores`.
            unreadable: see `fill_stores`; pass those of all processes to `exclude`.

        Returns:
            the number of cached frames.

        Raises:
            DatasetError: an image can't be read.
            WriteError: the disk is full or refused. Earlier frames stay.
        """
        frame_bytes = sum(store.frame_bytes for store in self.stores.values())
        capacity = int(min(self.max_bytes / max(1, frame_bytes) - self.is_cached.sum(), dataset.num_frames))
        frames = np.arange(max(0, capacity))
        fill_stores(
            self.stores,
            dataset,
            np.array_split(frames, processes)[rank],
            lambda key, pictures: pictures.numpy(),
            prepare=None if self.fit is None else partial(scale_down, fit=self.fit),
            load=load,
            progress=progress,
            unreadable=unreadable,
        )
        self.is_cached[dataset.frame_numbers[frames]] = True
        for key, store in self.stores.items():
            make_camera = partial(_CachedCamera, store, self._starts, self.is_cached, self.fit)
            dataset.replace_camera(key, make_camera)
        dataset.decodes &= len(frames) < dataset.num_frames
        return len(frames)

    def exclude(self, unreadable: Sequence[Unreadable]) -> None:
        """Mark unreadable frames as not cached, so that reading one raises its error."""
        self.is_cached[[self._starts[sample.episode] + sample.frame for sample in unreadable]] = False


@dataclass
class _CachedCamera:
    """A `Camera` that decodes only frames that are not cached."""

    store: FrameStore
    starts: Ints
    is_cached: NDArray[np.bool_]
    fit: tuple[int, int] | None
    camera: Camera

    def frames(self, episodes: Ints, numbers: Ints) -> Image:
        """See `Camera`."""
        positions = self.starts[episodes] + numbers
        cached = self.is_cached[positions]
        if cached.all():
            images: Image = self.store.read(positions)
        else:
            images = np.empty((len(positions), *self.store.shape), dtype=np.uint8)
            images[cached] = self.store.read(positions[cached])
            decoded = self.camera.frames(episodes[~cached], numbers[~cached])
            images[~cached] = scale_down(torch.from_numpy(decoded).permute(0, 3, 1, 2), self.fit).numpy()
        return np.asarray(images.transpose(0, 2, 3, 1))  # contiguous after the reader's transpose


def fill_stores(
    stores: Mapping[str, FrameStore],
    dataset: LeRobotDataset,
    frames: Ints,
    make: Callable[[str, Tensor], NDArray[Any]],
    *,
    prepare: Callable[[Tensor], Tensor] | None = None,
    load: Load | None = None,
    progress: Progress = no_progress,
    unreadable: list[Unreadable] | None = None,
) -> int:
    """Write missing frames into stores, and return how many were missing.

    Args:
        stores: camera to store.
        dataset: the dataset to read, in order, in runs of frames.
        frames: samples of the dataset, ascending.
        make: maps a camera and its images (n, 3, H, W) uint8 to the arrays to store (n, …), in this process.
        prepare: applied to the images first, in the process that decoded them.
        load: iterates over the runs, possibly in worker processes.
        progress: called while frames are checked and written.
        unreadable: receives unreadable frames, which are skipped; None to stop at the first one.

    Raises:
        DatasetError: an image can't be read, and `unreadable` is None.
        WriteError: the disk is full or refused. Earlier frames stay.
    """
    numbers = dataset.frame_numbers
    runs: list[tuple[str, Ints]] = []
    needed = 0
    for key, store in stores.items():
        missing = store.missing(
            numbers[frames].tolist(), partial(progress, f"checking what is kept of {key}")
        )
        needed += len(missing) * store.frame_bytes
        # Both are ascending, so positions in one are positions in the other.
        runs += [(key, run) for run in _runs(frames[np.searchsorted(numbers[frames], missing)])]
    _check_disk_space(next(iter(stores.values())).folder if stores else dataset.meta.root, needed)
    total, done = sum(len(run) for _, run in runs), 0
    frame_runs = FrameRuns(dataset, runs, prepare)
    for decoded in map(frame_runs.__getitem__, range(len(runs))) if load is None else load(frame_runs):
        if decoded.unreadable and unreadable is None:
            raise unreadable_error(decoded.unreadable)
        if unreadable is not None:
            unreadable += decoded.unreadable
        if decoded.pictures is not None:
            stores[decoded.camera].write(numbers[decoded.frames], make(decoded.camera, decoded.pictures))
        done += len(decoded.frames) + len(decoded.unreadable)
        progress(f"keeping frames of {len(stores)} camera{'s' * (len(stores) > 1)}", done, total)
    return total


class DecodedRun(NamedTuple):
    """A decoded run: its camera, readable frames (n,), images (n, 3, H, W) or None if n is 0, and unreadable frames."""

    camera: str
    frames: Ints
    pictures: Tensor | None
    unreadable: list[Unreadable]


@dataclass(frozen=True)
class FrameRuns(Dataset[DecodedRun]):
    """Runs of consecutive frames to decode."""

    dataset: LeRobotDataset
    runs: Sequence[tuple[str, Ints]]
    prepare: Callable[[Tensor], Tensor] | None

    def __len__(self) -> int:
        return len(self.runs)

    def __getitem__(self, index: int) -> DecodedRun:
        key, frames = self.runs[index]
        unreadable: list[Unreadable] = []
        try:
            images: Tensor | None = self.dataset.pictures(key, frames)
        except DatasetError:
            frames, images = self._one_by_one(key, frames, unreadable)
        if images is not None and self.prepare is not None:
            images = self.prepare(images)
        return DecodedRun(key, frames, images, unreadable)

    def _one_by_one(self, key: str, frames: Ints, unreadable: list[Unreadable]) -> tuple[Ints, Tensor | None]:
        images: dict[int, Tensor] = {}
        for frame in frames.tolist():
            try:
                images[frame] = self.dataset.pictures(key, np.array([frame]))
            except DatasetError as error:
                unreadable.append(self.dataset.unreadable(frame, error))
        pictures = torch.cat(list(images.values())) if images else None
        return np.array(list(images), dtype=np.int64), pictures


def _runs(frames: Ints) -> Iterator[Ints]:
    """Split frames into runs of consecutive ones, at most `RUN_LENGTH`."""
    for piece in np.split(frames, np.flatnonzero(np.diff(frames) != 1) + 1):
        for first in range(0, len(piece), RUN_LENGTH):
            yield piece[first : first + RUN_LENGTH]


def scale_down(images: Tensor, fit: tuple[int, int] | None) -> Tensor:
    """Images (n, 3, H, W) uint8, scaled down into (width, height) `fit` like SmolVLA's, and rounded."""
    height, width = _fitted_size((images.shape[-2], images.shape[-1]), fit)
    if (height, width) == tuple(images.shape[-2:]):
        return images
    resized = F.interpolate(images.float(), size=(height, width), mode="bilinear", align_corners=False)
    return resized.round_().to(torch.uint8)


def _fitted_size(size: tuple[int, int], fit: tuple[int, int] | None) -> tuple[int, int]:
    """The (height, width) after scaling down, never up, into (width, height) `fit`."""
    if fit is None:
        return size
    ratio = max(size[1] / fit[0], size[0] / fit[1])
    return size if ratio <= 1 else (int(size[0] / ratio), int(size[1] / ratio))


def cache_folder(root: Path) -> Path:
    """The dataset's cache folder, `NAME.cache` next to `root`, outside of edits and uploads."""
    if is_snapshot(root):  # next to a snapshot it would count as a revision
        return root.parents[1] / "smolact.cache"
    root = root.resolve()
    return root.with_name(f"{root.name}.cache")


def fingerprint(meta: LeRobotDatasetMetadata) -> str:
    """A hash of a dataset's files (path, size and 4096 bytes at both ends), or of a Hub snapshot's commit."""
    digest = hashlib.blake2b(digest_size=8)
    if is_snapshot(meta.root):  # a commit hash; not all files may be here
        digest.update(meta.root.name.encode())
        return digest.hexdigest()
    for folder in ("meta", "data", "videos"):
        for path in sorted((meta.root / folder).rglob("*")):
            if not path.is_file() or path.suffix not in (".json", ".jsonl", ".parquet", ".mp4"):
                continue
            with path.open("rb") as file:
                size = path.stat().st_size
                digest.update(f"{path.relative_to(meta.root).as_posix()} {size}\n".encode())
                digest.update(file.read(_SAMPLE_BYTES))
                file.seek(max(0, size - _SAMPLE_BYTES))
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def _check_disk_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise WriteError(
            f"What is to be kept needs {needed / 1e9:.1f} GB more in {folder}, and its disk has {free / 1e9:.1f} GB left. "
            "Keep less (--cache.max_gb), or elsewhere (--cache.folder)."
        )

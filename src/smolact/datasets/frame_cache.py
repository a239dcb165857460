"""Pictures of a dataset, decoded once and kept as they are: from then on a sample costs a copy, not a video.

cache = FrameCache(dataset.meta)
fill(cache, dataset)              # what is there already stays
cache.attach(dataset)             # the same samples, bit for bit
"""

# n frames asked for.

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
from smolact.datasets.metadata import LeRobotDatasetMetadata
from smolact.datasets.reader import LeRobotDataset, first_frames
from smolact.datasets.store import FrameStore
from smolact.datasets.unreadable import Unreadable, refusal
from smolact.datasets.video import Image
from smolact.errors import DatasetError, WriteError
from smolact.hub import is_snapshot

Ints = NDArray[np.int64]
Progress = Callable[[str, int, int], None]
"""Told what is done, and how many of how many."""
Load = Callable[["Runs"], Iterable["Piece"]]
"""Gives the items of a dataset, in order."""

RUN = 32
"""Frames in a row that are decoded together."""
_SAMPLED = 4096  # bytes at either end of a file that say whether it is the same


class FrameCache:
    """The kept pictures of a dataset's cameras.

    Args:
        meta: the dataset's.
        cameras: whose pictures; all but depth cameras when None.
        fit: (width, height) that pictures are scaled down to, in their own proportions: smaller, and no longer exact to the
            bit (rounded to whole numbers). None keeps them as they are.
        folder: where; a folder beside the dataset when None.
        max_bytes: no more is kept; further frames are decoded each time.

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
        self.folder = (folder or folder_beside(meta.root)) / name
        self.stores = {}
        for key in meta.color_keys if cameras is None else cameras:
            channels, height, width = meta.features[key].image_shape
            height, width = _inner((height, width), fit)
            shape = (channels, height, width)
            self.stores[key] = FrameStore(self.folder, key, shape, "uint8", meta.total_frames)
        self.is_kept = np.zeros(meta.total_frames, dtype=bool)
        self._starts = first_frames(meta)

    def keep(
        self,
        dataset: LeRobotDataset,
        *,
        rank: int = 0,
        processes: int = 1,
        load: Load | None = None,
        progress: Progress | None = None,
        unreadable: list[Unreadable] | None = None,
    ) -> int:
        """Keep a dataset's pictures as far as there is room, and let it take them from here.

        Args:
            dataset: of this metadata.
            rank, processes: of several processes, each makes a part; all have to be through before samples are read.
            load: gets what is decoded one by one, by other processes if it likes.
            progress: told of what is looked at and made.
            unreadable: as for `fill`; `leave_out` has to be told what all processes found.

        Returns:
            of how many of its frames the pictures are kept.

        Raises:
            DatasetError: a picture can't be read.
            WriteError: the disk is full or refused. What was made until then is kept.
        """
        of_one = sum(store.bytes_of_one for store in self.stores.values())
        room = int(min(self.max_bytes / max(1, of_one) - self.is_kept.sum(), dataset.num_frames))
        frames = np.arange(max(0, room))
        fill(
            self.stores,
            dataset,
            np.array_split(frames, processes)[rank],
            lambda key, pictures: pictures.numpy(),
            prepare=None if self.fit is None else partial(scaled, fit=self.fit),
            load=load,
            progress=progress,
            unreadable=unreadable,
        )
        self.is_kept[dataset.frame_numbers[frames]] = True
        for key, store in self.stores.items():
            kept = partial(_KeptCamera, store, self._starts, self.is_kept, self.fit)
            dataset.replace_camera(key, kept)
        dataset.decodes &= len(frames) < dataset.num_frames
        return len(frames)

    def leave_out(self, unreadable: Sequence[Unreadable]) -> None:
        """Frames that could not be read are not kept: whoever asks for one hears why."""
        self.is_kept[[self._starts[one.episode] + one.frame for one in unreadable]] = False


@dataclass
class _KeptCamera:
    """See `Camera`."""

    store: FrameStore
    starts: Ints
    is_kept: NDArray[np.bool_]
    fit: tuple[int, int] | None
    camera: Camera

    def frames(self, episodes: Ints, numbers: Ints) -> Image:
        """Out of the store, or of the camera."""
        places = self.starts[episodes] + numbers
        kept = self.is_kept[places]
        if kept.all():
            images: Image = self.store.read(places)
        else:
            images = np.empty((len(places), *self.store.shape), dtype=np.uint8)
            images[kept] = self.store.read(places[kept])
            decoded = self.camera.frames(episodes[~kept], numbers[~kept])
            images[~kept] = scaled(torch.from_numpy(decoded).permute(0, 3, 1, 2), self.fit).numpy()
        return np.asarray(images.transpose(0, 2, 3, 1))  # the reader's way back makes them contiguous again


def fill(
    stores: Mapping[str, FrameStore],
    dataset: LeRobotDataset,
    frames: Ints,
    make: Callable[[str, Tensor], NDArray[Any]],
    *,
    prepare: Callable[[Tensor], Tensor] | None = None,
    load: Load | None = None,
    progress: Progress | None = None,
    unreadable: list[Unreadable] | None = None,
) -> int:
    """Put into stores what is not there yet, and return how many arrays that were.

    Args:
        stores: camera to store.
        dataset: what to read; its pictures are decoded in order, a run of frames at a time.
        frames: samples of the dataset, ascending.
        make: camera and pictures (n, 3, H, W) uint8 to what is kept of them (n, …). Called in this process.
        prepare: called with the pictures before, in the process that decoded them.
        load: gets what is decoded one by one, by other processes if it likes.
        progress: told of what is looked at and made.
        unreadable: takes the frames that can't be read, of which nothing is put in; None to stop at the first one.

    Raises:
        DatasetError: a picture can't be read, and there is no list for that.
        WriteError: the disk is full or refused. What was made until then is kept.
    """
    say: Progress = progress or (lambda what, done, of: None)
    numbers = dataset.frame_numbers
    runs: list[tuple[str, Ints]] = []
    needed = 0
    for key, store in stores.items():
        lacking = store.missing(numbers[frames].tolist(), partial(say, f"checking what is kept of {key}"))
        needed += len(lacking) * store.bytes_of_one
        # Both ascend: where the numbers are among all is where they are among these.
        runs += [(key, run) for run in _runs(frames[np.searchsorted(numbers[frames], lacking)])]
    _check_room(next(iter(stores.values())).folder if stores else dataset.meta.root, needed)
    total, done = sum(len(run) for _, run in runs), 0
    wanted = Runs(dataset, runs, prepare)
    for piece in map(wanted.__getitem__, range(len(runs))) if load is None else load(wanted):
        if piece.unreadable and unreadable is None:
            raise refusal(piece.unreadable)
        if unreadable is not None:
            unreadable += piece.unreadable
        if piece.pictures is not None:
            stores[piece.camera].write(numbers[piece.frames], make(piece.camera, piece.pictures))
        done += len(piece.frames) + len(piece.unreadable)
        say(f"keeping frames of {len(stores)} camera{'s' * (len(stores) > 1)}", done, total)
    return total


class Piece(NamedTuple):
    """Frames (n,) of a camera that lie together, their pictures (n, 3, H, W), None for no frames, and those that can't be read."""

    camera: str
    frames: Ints
    pictures: Tensor | None
    unreadable: list[Unreadable]


class Runs(Dataset[Piece]):
    """What cameras saw, a run of frames at a time."""

    def __init__(
        self,
        dataset: LeRobotDataset,
        runs: Sequence[tuple[str, Ints]],
        prepare: Callable[[Tensor], Tensor] | None,
    ) -> None:
        self.dataset, self.runs, self.prepare = dataset, runs, prepare

    def __len__(self) -> int:
        return len(self.runs)

    def __getitem__(self, index: int) -> Piece:
        key, frames = self.runs[index]
        unreadable: list[Unreadable] = []
        try:
            pictures: Tensor | None = self.dataset.pictures(key, frames)
        except DatasetError:
            frames, pictures = self._one_by_one(key, frames, unreadable)
        if pictures is not None and self.prepare is not None:
            pictures = self.prepare(pictures)
        return Piece(key, frames, pictures, unreadable)

    def _one_by_one(self, key: str, frames: Ints, unreadable: list[Unreadable]) -> tuple[Ints, Tensor | None]:
        found: dict[int, Tensor] = {}
        for frame in frames.tolist():
            try:
                found[frame] = self.dataset.pictures(key, np.array([frame]))
            except DatasetError as error:
                unreadable.append(self.dataset.unreadable(frame, error))
        pictures = torch.cat(list(found.values())) if found else None
        return np.array(list(found), dtype=np.int64), pictures


def _runs(frames: Ints) -> Iterator[Ints]:
    """Frames in pieces that lie together."""
    for piece in np.split(frames, np.flatnonzero(np.diff(frames) != 1) + 1):
        for first in range(0, len(piece), RUN):
            yield piece[first : first + RUN]


def scaled(pictures: Tensor, fit: tuple[int, int] | None) -> Tensor:
    """Pictures (n, 3, H, W) uint8 scaled down into (width, height) `fit` as SmolVLA does it, and rounded."""
    height, width = _inner((pictures.shape[-2], pictures.shape[-1]), fit)
    if (height, width) == tuple(pictures.shape[-2:]):
        return pictures
    resized = F.interpolate(pictures.float(), size=(height, width), mode="bilinear", align_corners=False)
    return resized.round_().to(torch.uint8)


def _inner(size: tuple[int, int], fit: tuple[int, int] | None) -> tuple[int, int]:
    """(height, width) of a picture that is scaled down into (width, height) `fit`; never up."""
    if fit is None:
        return size
    ratio = max(size[1] / fit[0], size[0] / fit[1])
    return size if ratio <= 1 else (int(size[0] / ratio), int(size[1] / ratio))


def folder_beside(root: Path) -> Path:
    """Where what is kept of the dataset in `root` lies: `NAME.cache`, so that edits and uploads pass it over."""
    if is_snapshot(root):  # the Hub's cache: beside it all revisions would be seen as one more
        return root.parents[1] / "smolact.cache"
    root = root.resolve()
    return root.with_name(f"{root.name}.cache")


def fingerprint(meta: LeRobotDatasetMetadata) -> str:
    """A name for what a dataset holds: its metadata's bytes, and of each large file its size and both ends."""
    digest = hashlib.blake2b(digest_size=8)
    if is_snapshot(meta.root):  # a commit, of which not all files have to be here
        digest.update(meta.root.name.encode())
        return digest.hexdigest()
    for folder in ("meta", "data", "videos"):
        for path in sorted((meta.root / folder).rglob("*")):
            if not path.is_file() or path.suffix not in (".json", ".jsonl", ".parquet", ".mp4"):
                continue
            with path.open("rb") as file:
                size = path.stat().st_size
                digest.update(f"{path.relative_to(meta.root).as_posix()} {size}\n".encode())
                digest.update(file.read(_SAMPLED))
                file.seek(max(0, size - _SAMPLED))
                digest.update(file.read(_SAMPLED))
    return digest.hexdigest()


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise WriteError(
            f"What is to be kept needs {needed / 1e9:.1f} GB more in {folder}, and its disk has {free / 1e9:.1f} GB left. "
            "Keep less (--cache.max_gb), or elsewhere (--cache.folder)."
        )

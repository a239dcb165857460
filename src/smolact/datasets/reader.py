"""`LeRobotDataset`: a dataset on disk or on the Hub as training samples."""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from smolact.datasets.cameras import Camera, Columns, ImageCamera, VideoCamera, video_readers
from smolact.datasets.depth import depth_notice
from smolact.datasets.format import Feature
from smolact.datasets.lock import ReadLock
from smolact.datasets.metadata import LeRobotDatasetMetadata
from smolact.datasets.rows import load_frames
from smolact.datasets.unreadable import Unreadable
from smolact.errors import ConfigError, DatasetError, did_you_mean
from smolact.hub import find_folder, local_folder
from smolact.types import TASK, VISION_TOKENS, Batch

logger = logging.getLogger(__name__)

Ints = NDArray[np.int64]
CachedTokens = Callable[[Ints], Tensor]
"""Maps frame numbers (n,), counted through all episodes, to cached vision tokens (n, …)."""

TOLERANCE = 1e-4
"""The largest distance, in seconds, of an offset of `delta_timestamps` from a frame."""


class LeRobotDataset(Dataset[Batch]):
    """A map-style dataset of demonstration frames; `smolact.types` describes a sample.

    Args:
        repo_id: a folder, or an id on the Hub such as `lerobot/pusht`.
        root: a local folder to use instead, without network calls.
        episodes: the episodes to use, in the dataset's order; all when None.
        image_transforms: called with each camera image, (3, H, W) float32 in [0, 1] (uint8 with `return_uint8`).
        delta_timestamps: feature to offsets in seconds, whole numbers of frames, from the sample's frame. The feature gets a leading
            time dimension, and `{feature}_is_pad` (T,) is true where the first or last frame of the episode is repeated.
        revision: branch, tag or commit on the Hub.
        return_uint8: return uint8 images, a quarter of the bytes to move; divide by 255 on the device.
        cameras: the cameras to fetch and decode; all but depth cameras, which are not allowed, when None.

    Attributes:
        frame_numbers: (num_frames,), each sample's frame number among all episodes, selected or not.
        decodes: whether samples need decoding; false if all images are cached.

    Raises:
        NotFoundError, HubError: there is no such dataset, or it can't be fetched.
        DatasetError: the dataset is damaged, or its files do not match its metadata.
        ConfigError: the dataset lacks an episode, feature or offset.
    """

    def __init__(
        self,
        repo_id: str | Path,
        root: str | Path | None = None,
        episodes: Sequence[int] | None = None,
        image_transforms: Callable[[Tensor], Tensor] | None = None,
        delta_timestamps: Mapping[str, Sequence[float]] | None = None,
        revision: str | None = None,
        return_uint8: bool = False,
        cameras: Sequence[str] | None = None,
    ) -> None:
        folder = find_folder(repo_id, "dataset", root=root, patterns=["meta/**"], revision=revision)
        self.repo_id = str(repo_id)
        self._lock = ReadLock(folder)  # while held, no edit removes the files
        self.meta = LeRobotDatasetMetadata(folder)
        self.episodes = _select_episodes(episodes, self.meta)
        self.image_transforms = image_transforms
        self.return_uint8 = return_uint8
        self._camera_keys = _select_cameras(cameras, self.meta)
        self.delta_indices = {
            key: frame_offsets(key, offsets, self.meta.fps, self.meta.features)
            for key, offsets in (delta_timestamps or {}).items()
        }
        self._fetch(root)
        self._columns, self._starts, rows = load_frames(self.meta, self.episodes)
        self._numbers = np.array(self.episodes, dtype=np.int64)
        self._check_tasks()
        self._cameras = self._make_cameras(rows)
        self._tokens: dict[str, CachedTokens] = {}
        self.decodes = bool(self._camera_keys)
        shift = self.meta.episodes.from_index[self._numbers] - self._starts[:-1]
        self.frame_numbers: Ints = np.repeat(shift, np.diff(self._starts)) + np.arange(self.num_frames)

    @property
    def fps(self) -> float:
        """Frames per second."""
        return self.meta.fps

    @property
    def features(self) -> dict[str, Feature]:
        """The features of the metadata, by name."""
        return self.meta.features

    @property
    def num_frames(self) -> int:
        """The number of samples."""
        return int(self._starts[-1])

    @property
    def num_episodes(self) -> int:
        """The number of selected episodes."""
        return len(self.episodes)

    def frames_before_end(self, count: int) -> Ints:
        """The numbers of the frames with at least `count` later frames in their episode.

        Raises:
            ConfigError: there are none.
        """
        lasts = np.repeat(self._starts[1:], np.diff(self._starts))
        frames = np.flatnonzero(np.arange(self.num_frames) + count < lasts)
        if not len(frames):
            raise ConfigError(
                f"drop_n_last_frames={count} leaves nothing of {self.repo_id}: its longest episode has "
                f"{int(np.diff(self._starts).max())} frames. Lower it."
            )
        return frames

    def windows(self, key: str, length: int, frames: Ints | None = None) -> NDArray[Any]:
        """Windows of `length` frames of a non-camera feature, (N, length, …), each in one episode.

        Args:
            key: the feature, such as `action`.
                frames: the first frames, of `frames_before_end(length - 1)`; all of them when None.

        Raises:
            ConfigError: there is no such feature, or no episode is that long.
        """
        names = [name for name in self.meta.features if name not in self._cameras]
        if key not in names:
            raise ConfigError(
                f"The dataset has no feature '{key}' that is no camera.{did_you_mean(key, names)}"
            )
        first = self.frames_before_end(length - 1) if frames is None else frames
        return np.asarray(self._columns[key][first[:, None] + np.arange(length)])

    def pictures(self, key: str, frames: Ints) -> Tensor:
        """The images of camera `key` at the samples `frames` (n,), uint8 (n, 3, H, W)."""
        owners = np.searchsorted(self._starts, frames, side="right") - 1
        images = self._cameras[key].frames(self._numbers[owners], frames - self._starts[owners])
        return torch.from_numpy(images).permute(0, 3, 1, 2)

    def unreadable(self, index: int, error: DatasetError) -> Unreadable:
        """The location of sample `index`, which raised `error`."""
        row = self._row(index)
        slot = int(np.searchsorted(self._starts, row, side="right")) - 1
        return Unreadable(self.meta.root, self.episodes[slot], row - int(self._starts[slot]), str(error))

    def replace_camera(self, key: str, change: Callable[[Camera], Camera]) -> None:
        """Replace camera `key` by `change(camera)`."""
        self._cameras[key] = change(self._cameras[key])

    def replace_pictures(self, key: str, cached: CachedTokens) -> None:
        """Return cached vision tokens, by `frame_numbers`, instead of images of camera `key`."""
        if key in self.delta_indices:
            raise ConfigError(
                f"'{key}' is asked for at several times (delta_timestamps), which are not kept."
            )
        self._tokens[key] = cached

    def __len__(self) -> int:
        return self.num_frames

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Batch]:
        """Several samples; each video file is decoded once, in order."""
        rows = np.array([self._row(index) for index in indices], dtype=np.int64)
        slots = np.searchsorted(self._starts, rows, side="right") - 1
        first, last = self._starts[slots], self._starts[slots + 1] - 1
        samples: list[Batch] = [{} for _ in rows]
        for key, feature in self.meta.features.items():
            if feature.is_image and key not in self._camera_keys:
                continue
            if key in self._tokens:
                for sample, value in zip(samples, self._tokens[key](self.frame_numbers[rows]), strict=True):
                    sample[key + VISION_TOKENS] = value
                continue
            deltas = self.delta_indices.get(key)
            unclipped = rows[:, None] + (0 if deltas is None else deltas)
            window = np.clip(unclipped, first[:, None], last[:, None])
            values = self._images(key, window) if key in self._cameras else self._values(key, window)
            for sample, value in zip(samples, values, strict=True):
                sample[key] = value if deltas is not None else value[0]
            if deltas is not None:
                for sample, is_pad in zip(samples, torch.from_numpy(window != unclipped), strict=True):
                    sample[f"{key}_is_pad"] = is_pad
        for sample, row in zip(samples, rows, strict=True):
            sample[TASK] = self.meta.tasks[int(self._columns["task_index"][row])]
        return samples

    def _values(self, key: str, window: Ints) -> Any:
        values = self._columns[key][window]
        return values.tolist() if values.dtype == object else torch.from_numpy(values)

    def _images(self, key: str, window: Ints) -> list[Tensor]:
        """(T, 3, H, W) for each row of the window (B, T); repeated frames are decoded once."""
        unique, inverse = np.unique(window, return_inverse=True)
        images = self.pictures(key, unique)
        if len(unique) == len(window) and window.shape[1] == 1:  # no frame repeats: no copy
            return [self._finish(images[index : index + 1]) for index in inverse.reshape(-1).tolist()]
        return [self._finish(images[torch.from_numpy(indices)]) for indices in inverse.reshape(window.shape)]

    def _finish(self, images: Tensor) -> Tensor:
        images = images.contiguous()
        if not self.return_uint8:
            images = images.to(torch.float32).div_(255)
        return (
            images
            if self.image_transforms is None
            else torch.stack([self.image_transforms(i) for i in images])
        )

    def _row(self, index: int) -> int:
        number = operator.index(index)
        if not -self.num_frames <= number < self.num_frames:
            raise IndexError(
                f"Frame {number} is not in this dataset: it has {self.num_frames} frames of {self.num_episodes} "
                f"episodes, numbered 0 to {self.num_frames - 1}."
            )
        return number % self.num_frames

    def _fetch(self, root: str | Path | None) -> None:
        """Fetch the selected episodes' files if the dataset is on the Hub, and check that they exist."""
        table = self.meta.episodes
        paths = {table.data_path[number] for number in self.episodes}
        for key in filter(self._camera_keys.__contains__, table.video_path):
            paths |= {table.video_path[key][number] for number in self.episodes}
        if root is None and local_folder(self.repo_id, "dataset") != self.meta.root:
            commit = self.meta.root.name  # the Hub's cache names folders by commit: data and metadata match
            find_folder(self.repo_id, "dataset", patterns=sorted(paths), revision=commit)
            self.meta.check_files()
        missing = sorted(path for path in paths if not (self.meta.root / path).is_file())
        if missing:
            raise DatasetError(
                f"{self.meta.root} lacks {len(missing)} of the {len(paths)} files of the chosen episodes, such as "
                f"{missing[0]}. Fetch the dataset again, or restore them."
            )

    def _check_tasks(self) -> None:
        unknown = set(np.unique(self._columns["task_index"]).tolist()) - self.meta.tasks.keys()
        if unknown:
            raise DatasetError(
                f"{self.meta.root}: frames have task_index {sorted(unknown)}, which meta/ does not list (it has "
                f"{len(self.meta.tasks)} tasks). The metadata is damaged: fetch the dataset again."
            )

    def _make_cameras(self, rows: dict[int, Ints]) -> dict[str, Camera]:
        table, root = self.meta.episodes, self.meta.root
        readers, columns = video_readers(), Columns(root)
        cameras: dict[str, Camera] = {}
        for key in filter(self._camera_keys.__contains__, self.meta.video_keys):
            # Frame numbers, not times: sums of seconds drift.
            starts = np.rint(table.from_timestamp[key] * self.fps).astype(np.int64)
            paths = {number: table.video_path[key][number] for number in self.episodes}
            first = {number: int(starts[number]) for number in self.episodes}
            cameras[key] = VideoCamera(key, self.features[key], root, readers, paths, first)
        for key in filter(self._camera_keys.__contains__, self.meta.image_keys):
            paths = {number: table.data_path[number] for number in self.episodes}
            cameras[key] = ImageCamera(key, self.features[key], columns, paths, rows)
        return cameras


def _select_episodes(episodes: Sequence[int] | None, meta: LeRobotDatasetMetadata) -> list[int]:
    total = meta.total_episodes
    if not total:
        raise DatasetError(f"{meta.root} has no episodes yet. Record one, or choose another dataset.")
    if episodes is None:
        return list(range(total))
    selected = sorted({operator.index(number) for number in episodes})
    if not selected or selected[0] < 0 or selected[-1] >= total:
        raise ConfigError(
            f"episodes={list(episodes)[:20]}: expected one or more of 0 to {total - 1}, the {total} episodes of "
            f"{meta.root}."
        )
    return selected


def _select_cameras(cameras: Sequence[str] | None, meta: LeRobotDatasetMetadata) -> list[str]:
    for key in cameras or ():
        if key in meta.depth_keys:
            raise ConfigError(
                f"cameras names '{key}', a depth camera of {meta.root}: depth is not read. Leave it out."
            )
        if key not in meta.camera_keys:
            raise ConfigError(
                f"cameras names '{key}', which {meta.root} does not have; it has {', '.join(meta.camera_keys)}."
                f"{did_you_mean(key, meta.camera_keys)}"
            )
    if cameras is not None:
        return list(cameras)
    message = depth_notice(meta)
    if message is not None:
        logger.info("%s: %s", meta.root, message)
    return meta.color_keys


def frame_offsets(key: str, seconds: Sequence[float], fps: float, features: Mapping[str, Feature]) -> Ints:
    """Convert offsets in seconds to offsets in frames.

    Raises:
        ConfigError: there is no feature `key`, or an offset is not a whole number of frames.
    """
    if key not in features:
        raise ConfigError(
            f"delta_timestamps names '{key}', which the dataset does not have; it has {', '.join(features)}."
            f"{did_you_mean(key, features)}"
        )
    if features[key].is_depth:
        raise ConfigError(f"delta_timestamps names '{key}', a depth camera: depth is not read. Leave it out.")
    offsets = np.asarray(seconds, dtype=np.float64)
    if offsets.ndim != 1 or not offsets.size or not np.isfinite(offsets).all():
        raise ConfigError(
            f"delta_timestamps of '{key}' must be a list of offsets in seconds, found {seconds!r:.200}."
        )
    frames = np.rint(offsets * fps)
    wrong = np.flatnonzero(np.abs(frames / fps - offsets) > TOLERANCE)
    if wrong.size:
        offset, nearest = float(offsets[wrong[0]]), float(frames[wrong[0]] / fps)
        raise ConfigError(
            f"delta_timestamps of '{key}' has the offset {offset:g} s, which is no whole number of frames at {fps:g} "
            f"frames a second. The nearest is {nearest:g} s."
        )
    return frames.astype(np.int64)

"""`LeRobotDataset`: a dataset on disk or on the Hub as samples for training."""

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

from smolact.datasets.cameras import Camera, Columns, ImageCamera, VideoCamera, Videos
from smolact.datasets.depth import depth_story
from smolact.datasets.format import Feature
from smolact.datasets.frames import load_frames
from smolact.datasets.lock import ReadLock
from smolact.datasets.metadata import LeRobotDatasetMetadata
from smolact.datasets.unreadable import Unreadable
from smolact.errors import ConfigError, DatasetError, did_you_mean
from smolact.hub import find_folder, local_folder
from smolact.types import TASK, VISION_TOKENS, Batch

logger = logging.getLogger(__name__)

Ints = NDArray[np.int64]
Kept = Callable[[Ints], Tensor]
"""Frames (n,), numbered through all episodes, to what is kept of them (n, …)."""

TOLERANCE = 1e-4
"""How far, in seconds, an offset of `delta_timestamps` may be from a frame's time."""


class LeRobotDataset(Dataset[Batch]):
    """A map-style dataset of the frames of demonstrations; a sample is described in `smolact.types`.

    Args:
        repo_id: a folder, or an id on the Hub such as `lerobot/pusht`.
        root: a local folder that is used instead; no network call is made then.
        episodes: the episodes to use, in the dataset's order; all of them when None.
        image_transforms: called with each camera image, (3, H, W) float32 in [0, 1] (uint8 with `return_uint8`).
        delta_timestamps: feature to offsets in seconds from the sample's frame. The feature then has a leading time
            dimension, and `{feature}_is_pad` (T,) is true where an offset lies outside the episode, whose first or
            last frame stands in. An offset must be a whole number of frames.
        revision: branch, tag or commit on the Hub.
        return_uint8: give images as uint8, a quarter of the bytes to move; divide by 255 on the device.
        cameras: those that samples have; all of them when None. Of others nothing is fetched or decoded. A depth camera can't be
            one of them.

    Attributes:
        frame_numbers: (num_frames,), where each sample's frame is among those of all episodes, chosen or not.
        decodes: whether pictures are decoded; not if all of them are kept somewhere, and a sample is only copied.

    Raises:
        NotFoundError, HubError: there is no such dataset, or it can't be fetched.
        DatasetError: it is damaged, or its files are not what its metadata says.
        ConfigError: an episode, feature or offset that the dataset does not have.
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
        self._held = ReadLock(folder)  # as long as this is there, no edit takes the files away
        self.meta = LeRobotDatasetMetadata(folder)
        self.episodes = _chosen(episodes, self.meta)
        self.image_transforms = image_transforms
        self.return_uint8 = return_uint8
        self._camera_keys = _chosen_cameras(cameras, self.meta)
        self.delta_indices = {
            key: frame_offsets(key, offsets, self.meta.fps, self.meta.features)
            for key, offsets in (delta_timestamps or {}).items()
        }
        self._fetch(root)
        frames = load_frames(self.meta, self.episodes)
        self._columns, self._starts = frames.columns, frames.starts
        self._numbers = np.array(self.episodes, dtype=np.int64)
        self._check_tasks()
        self._cameras = self._make_cameras(frames.rows)
        self._kept: dict[str, Kept] = {}
        self.decodes = bool(self._camera_keys)
        shift = first_frames(self.meta)[self._numbers] - self._starts[:-1]
        self.frame_numbers: Ints = np.repeat(shift, np.diff(self._starts)) + np.arange(self.num_frames)

    @property
    def fps(self) -> float:
        """Frames a second."""
        return self.meta.fps

    @property
    def features(self) -> dict[str, Feature]:
        """Name to feature, as the metadata has them."""
        return self.meta.features

    @property
    def num_frames(self) -> int:
        """The number of samples: frames of the chosen episodes."""
        return int(self._starts[-1])

    @property
    def num_episodes(self) -> int:
        """The number of chosen episodes."""
        return len(self.episodes)

    def frames_before_end(self, count: int) -> Ints:
        """The numbers of the frames that are followed by `count` or more of their episode.

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
        """Runs of `length` frames of a feature that is no camera, (N, length, …), without decoding anything.

        Args:
            key: the feature, such as `action`.
            length: frames of a run; all of them lie in one episode.
            frames: the numbers of their first frames, of those that `frames_before_end(length - 1)` gives; all when None.

        Raises:
            ConfigError: no such feature, or no episode is so long.
        """
        known = [name for name in self.meta.features if name not in self._cameras]
        if key not in known:
            raise ConfigError(
                f"The dataset has no feature '{key}' that is no camera.{did_you_mean(key, known)}"
            )
        first = self.frames_before_end(length - 1) if frames is None else frames
        return np.asarray(self._columns[key][first[:, None] + np.arange(length)])

    def pictures(self, key: str, frames: Ints) -> Tensor:
        """What camera `key` saw at some samples' frames (n,), as uint8 (n, 3, H, W)."""
        owners = np.searchsorted(self._starts, frames, side="right") - 1
        found = self._cameras[key].frames(self._numbers[owners], frames - self._starts[owners])
        return torch.from_numpy(found).permute(0, 3, 1, 2)

    def unreadable(self, index: int, error: DatasetError) -> Unreadable:
        """The sample `index`, which raised `error`, with its place."""
        row = self._row(index)
        slot = int(np.searchsorted(self._starts, row, side="right")) - 1
        return Unreadable(self.meta.root, self.episodes[slot], row - int(self._starts[slot]), str(error))

    def replace_camera(self, key: str, change: Callable[[Camera], Camera]) -> None:
        """Take the pictures of camera `key` from what `change` makes of it."""
        self._cameras[key] = change(self._cameras[key])

    def replace_pictures(self, key: str, kept: Kept) -> None:
        """Give samples the vision tokens of camera `key` in the place of its picture: `kept` has them by `frame_numbers`."""
        if key in self.delta_indices:
            raise ConfigError(
                f"'{key}' is asked for at several times (delta_timestamps), which are not kept."
            )
        self._kept[key] = kept

    def __len__(self) -> int:
        return self.num_frames

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Batch]:
        """Several samples at once, as a DataLoader asks for them: each video file is decoded once, in order."""
        rows = np.array([self._row(index) for index in indices], dtype=np.int64)
        slots = np.searchsorted(self._starts, rows, side="right") - 1
        first, last = self._starts[slots], self._starts[slots + 1] - 1
        samples: list[Batch] = [{} for _ in rows]
        for key, feature in self.meta.features.items():
            if feature.is_image and key not in self._camera_keys:
                continue
            if key in self._kept:
                for sample, value in zip(samples, self._kept[key](self.frame_numbers[rows]), strict=True):
                    sample[key + VISION_TOKENS] = value
                continue
            deltas = self.delta_indices.get(key)
            wanted = rows[:, None] + (0 if deltas is None else deltas)
            window = np.clip(wanted, first[:, None], last[:, None])
            values = self._images(key, window) if key in self._cameras else self._values(key, window)
            for sample, value in zip(samples, values, strict=True):
                sample[key] = value if deltas is not None else value[0]
            if deltas is not None:
                for sample, is_pad in zip(samples, torch.from_numpy(window != wanted), strict=True):
                    sample[f"{key}_is_pad"] = is_pad
        for sample, row in zip(samples, rows, strict=True):
            sample[TASK] = self.meta.tasks[int(self._columns["task_index"][row])]
        return samples

    def _values(self, key: str, window: Ints) -> Any:
        values = self._columns[key][window]
        return values.tolist() if values.dtype == object else torch.from_numpy(values)

    def _images(self, key: str, window: Ints) -> list[Tensor]:
        """(T, 3, H, W) for each row of the window (B, T); a frame that several rows show is decoded once."""
        unique, back = np.unique(window, return_inverse=True)
        pictures = self.pictures(key, unique)
        if len(unique) == len(window) and window.shape[1] == 1:  # each has a picture of its own: no copy
            return [self._finish(pictures[place : place + 1]) for place in back.reshape(-1).tolist()]
        return [self._finish(pictures[torch.from_numpy(places)]) for places in back.reshape(window.shape)]

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
        """Make sure that the files of the chosen episodes are here: fetch them if the dataset is on the Hub."""
        table = self.meta.episodes
        paths = {table.data_path[number] for number in self.episodes}
        for key in filter(self._camera_keys.__contains__, table.video_path):
            paths |= {table.video_path[key][number] for number in self.episodes}
        if root is None and local_folder(self.repo_id, "dataset") != self.meta.root:
            commit = (
                self.meta.root.name
            )  # the Hub's folders are named by commit: metadata and data stay together
            find_folder(self.repo_id, "dataset", patterns=sorted(paths), revision=commit)
            self.meta.look_at_files()
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
        table = self.meta.episodes
        videos, columns = Videos(self.meta.root), Columns(self.meta.root)
        cameras: dict[str, Camera] = {}
        for key in filter(self._camera_keys.__contains__, self.meta.video_keys):
            # By number, not by time: several episodes share a file, and sums of seconds drift.
            starts = np.rint(table.from_timestamp[key] * self.fps).astype(np.int64)
            paths = {number: table.video_path[key][number] for number in self.episodes}
            first = {number: int(starts[number]) for number in self.episodes}
            cameras[key] = VideoCamera(key, self.features[key], videos, paths, first)
        for key in filter(self._camera_keys.__contains__, self.meta.image_keys):
            paths = {number: table.data_path[number] for number in self.episodes}
            cameras[key] = ImageCamera(key, self.features[key], columns, paths, rows)
        return cameras


def first_frames(meta: LeRobotDatasetMetadata) -> Ints:
    """(episodes,), the number of each episode's first frame among those of all."""
    return np.asarray(np.cumsum(meta.episodes.length) - meta.episodes.length)


def _chosen(episodes: Sequence[int] | None, meta: LeRobotDatasetMetadata) -> list[int]:
    total = meta.total_episodes
    if not total:
        raise DatasetError(f"{meta.root} has no episodes yet. Record one, or choose another dataset.")
    if episodes is None:
        return list(range(total))
    chosen = sorted({operator.index(number) for number in episodes})
    if not chosen or chosen[0] < 0 or chosen[-1] >= total:
        raise ConfigError(
            f"episodes={list(episodes)[:20]}: expected one or more of 0 to {total - 1}, the {total} episodes of "
            f"{meta.root}."
        )
    return chosen


def _chosen_cameras(cameras: Sequence[str] | None, meta: LeRobotDatasetMetadata) -> list[str]:
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
    story = depth_story(meta)
    if story is not None:
        logger.info("%s: %s", meta.root, story)
    return meta.color_keys


def frame_offsets(key: str, seconds: Sequence[float], fps: float, features: Mapping[str, Feature]) -> Ints:
    """Offsets in frames for offsets in seconds.

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
        asked, nearest = float(offsets[wrong[0]]), float(frames[wrong[0]] / fps)
        raise ConfigError(
            f"delta_timestamps of '{key}' has the offset {asked:g} s, which is no whole number of frames at {fps:g} "
            f"frames a second. The nearest is {nearest:g} s."
        )
    return frames.astype(np.int64)

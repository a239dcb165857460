"""`DatasetWriter`: records demonstrations into a LeRobot dataset (v3.0), safe against kills and full disks."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smolact import durable
from smolact.datasets import quarantine
from smolact.datasets.cameras import encode_image
from smolact.datasets.checks import check_features, check_frame, check_task
from smolact.datasets.committer import EpisodeCommitter, FileGroup
from smolact.datasets.encoders import ENCODERS, choose_encoder
from smolact.datasets.episode_buffer import EpisodeBuffer
from smolact.datasets.format import DEFAULT_FEATURES, Feature
from smolact.datasets.lock import FolderLock
from smolact.datasets.resume import check_compatible, read_resume_state, recorded_features
from smolact.datasets.video import VideoWriter
from smolact.errors import ConfigError, SmolactError
from smolact.hub import missing_folder

logger = logging.getLogger(__name__)

PIX_FMT = "yuv420p"
GOP, CRF = 2, 30


class DatasetWriter:
    """Writes a dataset: `add_frame` for every frame, `save_episode` after a success, `close` at the end.

    Construct it with `create` or `resume`. As a context manager it keeps finished episodes when the block raises.
    """

    def __init__(
        self,
        root: Path,
        fps: float,
        features: dict[str, Feature],
        robot_type: str | None,
        video_codec: str,
        episodes_per_file: int,
    ) -> None:
        if type(episodes_per_file) is not int or episodes_per_file < 1:
            raise ConfigError(f"episodes_per_file={episodes_per_file!r}: expected a whole number, 1 or more.")
        self.root, self.fps, self.robot_type = root, fps, robot_type
        self.features = features
        self._codec, self._episodes_per_file = video_codec, episodes_per_file
        self._own = {name: feature for name, feature in features.items() if name not in DEFAULT_FEATURES}
        self._video_keys = [name for name, feature in features.items() if feature.dtype == "video"]
        self._committer = EpisodeCommitter(root, fps, features, robot_type)
        self._tasks: dict[str, int] = {}
        self._episode: EpisodeBuffer | None = None
        self._group = FileGroup()
        self._lock_stack = contextlib.ExitStack()  # the folder lock
        self._closed = False

    @classmethod
    def create(
        cls,
        root: str | Path,
        *,
        fps: float,
        features: Mapping[str, Feature | Mapping[str, Any]],
        robot_type: str | None = None,
        video_codec: str = "libsvtav1",
        episodes_per_file: int = 1,
    ) -> DatasetWriter:
        """Create a new dataset in the folder `root`, which must not exist or be empty.

        Args:
            features: name to feature, or to LeRobot's `{dtype, shape, names}`: dtype `video` or `image` with shape
                (H, W, 3), or a number type with one frame's shape. Names are free.
            robot_type: the robot's name, stored for information.
            video_codec: `libsvtav1` (small files), `h264`, another of `encoders.ENCODERS`, or `auto` for hardware encoding.
            episodes_per_file: 1 publishes each episode when it is saved and encodes video while frames arrive. More, for
                thousands of short episodes, publishes that many together (or on `commit` and `close`): video frames then
                stay in memory until their episode is saved, and unpublished episodes are lost if the process dies.

        Raises:
            ConfigError: the folder is not empty, or a setting or feature is invalid.
            NotFoundError: a killed edit has left the folder's dataset under its backup name next to `root`.
            WriteError: another process writes to the folder, or the disk is full or refused.
        """
        folder = Path(root)
        if durable.replacement_interrupted(folder):
            raise missing_folder(folder, "dataset")
        if not np.isfinite(fps) or fps <= 0:
            raise ConfigError(f"fps={fps}: expected frames a second, above 0.")
        checked = check_features(features)
        video_codec = choose_encoder(video_codec, _sizes(checked))
        for name, feature in checked.items():
            if feature.dtype == "video":
                height, width, _ = feature.shape
                info = _video_info(height, width, fps, video_codec)
                checked[name] = Feature(feature.dtype, feature.shape, feature.names, info)
        number = int(fps) if float(fps).is_integer() else float(fps)
        writer = cls(
            folder, number, {**checked, **DEFAULT_FEATURES}, robot_type, video_codec, episodes_per_file
        )
        if folder.exists() and not folder.is_dir():
            raise _not_empty(folder)
        durable.make_folder(folder)
        with contextlib.ExitStack() as stack:
            stack.enter_context(FolderLock(folder))
            _remove_leftovers(folder)
            if any(folder.iterdir()):
                raise _not_empty(folder)
            writer._committer.begin()
            writer._lock_stack = stack.pop_all()
        return writer

    @classmethod
    def resume(
        cls,
        root: str | Path,
        *,
        fps: float | None = None,
        features: Mapping[str, Feature | Mapping[str, Any]] | None = None,
        robot_type: str | None = None,
        video_codec: str | None = None,
        episodes_per_file: int = 1,
    ) -> DatasetWriter:
        """Resume recording into the dataset (v3.0, ours or LeRobot's) in the folder `root`; new episodes go into new files.

        Leftovers of a killed writer are moved into a separate folder, with a warning. Statistics continue exactly, except
        those of cameras that another tool wrote, which continue from its `stats.json`.

        Args:
            fps, features, robot_type: those of the new recording, checked against the dataset; None takes the dataset's.
            video_codec: None for the dataset's codec.
            episodes_per_file: as in `create`.

        Raises:
            NotFoundError: the folder does not exist.
            ConfigError: the dataset is of an older version, or has another frame rate or codec.
            FeatureError: its features differ.
            DatasetError: it is corrupt.
            WriteError: another process writes to it, or the disk is full or refused.
        """
        with contextlib.ExitStack() as stack:
            stack.enter_context(FolderLock(Path(root)))
            state = read_resume_state(Path(root))
            meta = state.meta
            check_compatible(meta, fps, None if features is None else check_features(features), robot_type)
            recorded = check_features(recorded_features(meta))
            formats = {recorded[key].info.get("video.codec", "av1") for key in meta.video_keys}
            codec = choose_encoder(video_codec, _sizes(recorded), formats)
            all_features = {**recorded, **DEFAULT_FEATURES}
            writer = cls(Path(root), meta.fps, all_features, meta.robot_type, codec, episodes_per_file)
            writer._tasks = {task: number for number, task in enumerate(state.tasks)}
            writer._committer.resume(state)
            writer._lock_stack = stack.pop_all()
        return writer

    @property
    def num_episodes(self) -> int:
        """Episodes saved so far, published or pending."""
        return self._committer.episodes + len(self._group.rows)

    @property
    def num_frames(self) -> int:
        """Frames of the episodes saved so far."""
        return self._committer.frames + self._group.frames

    def add_frame(self, frame: Mapping[str, Any], task: str) -> None:
        """Add a frame to the current episode.

        Args:
            frame: a value for each feature that the dataset was created with; images (H, W, 3) or (3, H, W), uint8 or
                floats in [0, 1].
            task: the instruction; it may change within an episode.

        Raises:
            FeatureError: a value is missing, unknown, of another shape or type, or not finite; or the task is empty. The
                episode stays unchanged.
            VideoError, WriteError: the frame can't be encoded or written; the current episode is discarded.
        """
        self._check_open()
        values = check_frame(frame, self._own)
        check_task(task)
        if self._episode is None:
            if self._group.finalized:
                self.commit()  # the disk refused an earlier commit
            self._episode = EpisodeBuffer.begin(self._own)
        episode = self._episode
        for name, value in values.items():
            kind = self._own[name].dtype
            if name in episode.statistics:
                episode.statistics[name].update(value)
            if kind == "video" and self._episodes_per_file == 1:
                self._encode(name, [value])
            else:
                episode.values[name].append(encode_image(value) if kind == "image" else value)
        episode.tasks.append(task)

    def save_episode(self) -> None:
        """Finish the current episode; with `episodes_per_file=1` it is durably on disk when this returns.

        Raises:
            ConfigError: there are no frames to save.
            WriteError: the disk is full or refused. Published episodes are intact. Pending ones are published by the next
                `commit`, `save_episode` or `close`, unless their video was truncated.
        """
        self._check_open()
        episode = self._episode
        if episode is None:
            raise ConfigError("There is no episode to save: call add_frame first.")
        if self._episodes_per_file > 1:
            for name in self._video_keys:
                self._encode(name, episode.values[name])
        self._episode = None
        self._append(episode)
        if len(self._group.rows) >= self._episodes_per_file:
            self.commit()

    def discard_episode(self) -> None:
        """Discard the frames since the last save."""
        if self._episode is not None and self._episodes_per_file == 1:
            self._drop_group()
        self._episode = None

    def commit(self) -> None:
        """Publish the pending episodes. Each step is idempotent, so a failed commit can be retried."""
        self._check_open()
        group = self._group
        if not group.rows:
            return
        try:
            for video in group.videos.values():
                video.close()
        except SmolactError:
            self._drop_group()
            raise
        group.finalized = True
        self._committer.publish(group, list(self._tasks))
        self._group = FileGroup()

    def close(self) -> None:
        """Publish the pending episodes and remove the staging folder. Unsaved frames are dropped, with a warning."""
        if self._closed:
            return
        if self._episode is not None:
            logger.warning(
                "%s: %d frames were added but not saved as an episode; they are dropped.",
                self.root,
                len(self._episode),
            )
            self.discard_episode()
        self.commit()
        self._closed = True
        self._committer.end()
        self._lock_stack.close()

    def __enter__(self) -> DatasetWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise ConfigError(f"The writer of {self.root} is closed. Create another, for another folder.")

    def _encode(self, name: str, images: list[NDArray[np.uint8]]) -> None:
        try:
            if name not in self._group.videos:
                height, width, _ = self._own[name].shape
                path = self._committer.staged(name)
                self._group.videos[name] = VideoWriter(path, self.fps, width, height, self._codec, GOP, CRF)
            for image in images:
                self._group.videos[name].write(image)
        except SmolactError:
            self._drop_group()
            raise

    def _drop_group(self) -> None:
        """Discard the unpublished episodes: a truncated video can't be continued."""
        num_lost = len(self._group.rows)
        for video in self._group.videos.values():
            video.abort()
        self._tasks = dict(list(self._tasks.items())[: self._committer.tasks])
        self._group, self._episode = FileGroup(), None
        if num_lost:
            logger.warning(
                "%s: %d episodes could not be written and are lost; the %d before them are on disk.",
                self.root,
                num_lost,
                self._committer.episodes,
            )

    def _append(self, episode: EpisodeBuffer) -> None:
        """Turn the episode's frames into columns and a row of metadata, and add them to the group."""
        for task in episode.tasks:
            self._tasks.setdefault(task, len(self._tasks))
        columns, row = episode.finish(
            self.features,
            self.fps,
            self._tasks,
            number=self.num_episodes,
            first=self.num_frames,
            first_video_frame=self._group.frames,
        )
        self._group.rows.append(row)
        self._group.columns.append(columns)
        self._group.images.append(episode.statistics)
        self._group.frames += len(episode)


def _not_empty(folder: Path) -> ConfigError:
    return ConfigError(
        f"{folder} exists and is not empty, and a new dataset needs a folder of its own. Choose another folder, or remove this "
        "one."
    )


def _remove_leftovers(folder: Path) -> None:
    """Empty the folder if it holds only leftovers of a writer that died while it created the dataset."""
    meta, is_temporary = folder / "meta", quarantine.is_temporary
    has_meta = meta.is_dir() and not meta.is_symlink() and all(map(is_temporary, meta.iterdir()))
    if not all(is_temporary(entry) or (has_meta and entry == meta) for entry in folder.iterdir()):
        return
    with durable.annotate_errors(folder):
        if has_meta:
            durable.remove_litter(meta)
            meta.rmdir()
        durable.remove_litter(folder)


def _sizes(features: Mapping[str, Feature]) -> list[tuple[int, int]]:
    return [(feature.shape[0], feature.shape[1]) for feature in features.values() if feature.dtype == "video"]


def _video_info(height: int, width: int, fps: float, codec: str) -> dict[str, Any]:
    return {
        "video.height": height,
        "video.width": width,
        "video.codec": ENCODERS[codec].format,
        "video.pix_fmt": PIX_FMT,
        "video.fps": fps,
        "video.channels": 3,
        "video.g": GOP,
        "video.crf": CRF,
        "video.preset": ENCODERS[codec].preset,
        "video.fast_decode": 0,
        "video.video_backend": "pyav",
        "video.extra_options": {},
        "has_audio": False,
        "is_depth_map": False,
    }

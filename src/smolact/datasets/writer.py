"""`DatasetWriter`: demonstrations to a LeRobot dataset (v3.0), frame by frame, safe against kills and full disks.

A group of episodes is written to files of its own, under names that no reader looks at, and published in this order:
videos, data, `meta/episodes`, tasks, statistics, and last `meta/info.json`, which says how many episodes there are.
Whenever the process dies, the dataset on disk is whole and holds exactly the groups that were published.
"""

from __future__ import annotations

import copy
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from smolact import durable
from smolact.datasets import format as layout
from smolact.datasets.cameras import encode_image
from smolact.datasets.format import DEFAULT_FEATURES, Feature
from smolact.datasets.checks import check_features, check_frame, check_task
from smolact.datasets.stats import ImageStatistics, VectorStatistics, vector_statistics
from smolact.datasets.tables import episodes_schema, frames_schema, tasks_table, to_column
from smolact.datasets.video import ENCODERS, VideoWriter, check_encoder
from smolact.errors import ConfigError, SmolactError

logger = logging.getLogger(__name__)

PIX_FMT = "yuv420p"
GOP, CRF = 2, 30


@dataclass
class _Episode:
    """The frames since the last save."""

    values: dict[str, list[Any]]  # a camera stored as images: PNG bytes; as video in a group: the frames
    statistics: dict[str, ImageStatistics]
    tasks: list[str] = field(default_factory=list)


@dataclass
class _Group:
    """Finished episodes that go into the same files."""

    columns: list[dict[str, Any]] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    statistics: list[dict[str, ImageStatistics]] = field(default_factory=list)
    videos: dict[str, VideoWriter] = field(default_factory=dict)
    frames: int = 0
    sealed: bool = False  # its videos are finished: it takes no more episodes


class DatasetWriter:
    """Writes a new dataset: `add_frame` for every frame, `save_episode` when it is a success, `close` at the end.

    Made by `create`. Usable as a context manager; finished episodes are kept when the block raises.
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
        self.root, self.fps, self.robot_type = root, fps, robot_type
        self.features = features
        self._codec, self._episodes_per_file = video_codec, episodes_per_file
        self._own = {name: feature for name, feature in features.items() if name not in DEFAULT_FEATURES}
        self._video_keys = [name for name, feature in features.items() if feature.dtype == "video"]
        self._schema = frames_schema(features)
        self._statistics: dict[str, VectorStatistics | ImageStatistics] = {
            name: ImageStatistics() if feature.is_image else VectorStatistics(feature.shape)
            for name, feature in features.items()
            if feature.dtype != "string"
        }
        self._tasks: dict[str, int] = {}
        self._episodes = self._frames = self._files = self._saved_tasks = 0  # what is published
        self._episode: _Episode | None = None
        self._group = _Group()
        self._closed = False
        self._staging = durable.temporary_beside(root / "staging")

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
        """Begin a new dataset in the folder `root`, which must not exist or be empty.

        Args:
            root: the folder.
            fps: frames a second.
            features: name to feature, or to LeRobot's `{dtype, shape, names}`: dtype `video` or `image` with shape
                (H, W, 3), or a number type with the shape of one frame's value. Names are free.
            robot_type: what recorded it, for the reader's information.
            video_codec: `libsvtav1` (small files) or `h264`.
            episodes_per_file: 1 publishes each episode as it is saved, and its video is encoded as it comes in. More
                publishes that many together (or on `commit` and `close`), for thousands of short episodes: then an
                episode's video frames wait in memory until it is saved, and episodes since the last publication are
                lost if the process dies.

        Raises:
            ConfigError: the folder is not empty, or a setting or feature can't work.
            WriteError: the disk is full or refused.
        """
        folder = Path(root)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(
                f"{folder} exists and is not empty: a new dataset needs a folder of its own. Choose another name, or "
                "remove it first."
            )
        if not np.isfinite(fps) or fps <= 0:
            raise ConfigError(f"fps={fps}: expected frames a second, above 0.")
        if type(episodes_per_file) is not int or episodes_per_file < 1:
            raise ConfigError(f"episodes_per_file={episodes_per_file!r}: expected a whole number, 1 or more.")
        checked = check_features(features)
        for name, feature in checked.items():
            if feature.dtype == "video":
                height, width, _ = feature.shape
                check_encoder(video_codec, width, height)
                info = _video_info(height, width, fps, video_codec)
                checked[name] = Feature(feature.dtype, feature.shape, feature.names, info)
        number = int(fps) if float(fps).is_integer() else float(fps)
        writer = cls(folder, number, {**checked, **DEFAULT_FEATURES}, robot_type, video_codec, episodes_per_file)
        with durable.named_errors(folder):
            durable.make_folder(folder)
            writer._staging.mkdir()
        durable.write_json(folder / layout.INFO, writer._info(0, 0))
        return writer

    @property
    def num_episodes(self) -> int:
        """Episodes saved so far, published or waiting."""
        return self._episodes + len(self._group.rows)

    @property
    def num_frames(self) -> int:
        """Frames of the episodes saved so far."""
        return self._frames + self._group.frames

    def add_frame(self, frame: Mapping[str, Any], task: str) -> None:
        """Add a frame to the episode at hand.

        Args:
            frame: a value for each feature that the dataset was created with; images (H, W, 3) or (3, H, W), uint8
                or floats in [0, 1].
            task: the instruction; it may change within an episode.

        Raises:
            FeatureError: a value is missing, not known, of another shape or type, or not finite; or the task is
                empty. The episode is as it was.
            VideoError, WriteError: the frame can't be encoded or written; the episode at hand is given up.
        """
        self._check_open()
        values = check_frame(frame, self._own)
        check_task(task)
        if self._episode is None:
            if self._group.sealed:
                self.commit()  # the disk refused it before
            self._episode = _Episode(
                {name: [] for name in self._own},
                {name: ImageStatistics() for name, feature in self._own.items() if feature.is_image},
            )
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
        """Finish the episode at hand; with `episodes_per_file=1` it is on disk for good when this returns.

        Raises:
            ConfigError: there are no frames to save.
            WriteError: the disk is full or refused. Episodes published before are whole. Saved ones that wait are
                published by the next `commit`, `save_episode` or `close`, unless their video was cut off.
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
        """Forget the frames since the last save."""
        if self._episode is not None and self._episodes_per_file == 1:
            self._drop_group()
        self._episode = None

    def commit(self) -> None:
        """Publish the episodes that wait. Each step can be repeated, so a commit that failed can be tried again."""
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
        group.sealed = True
        statistics = self._with_group(group)
        chunk, file = divmod(self._files, layout.FILES_PER_CHUNK)
        for name, video in group.videos.items():
            if video.path.exists():  # else an earlier try has moved it
                place = layout.VIDEO_PATH.format(video_key=name, chunk_index=chunk, file_index=file)
                durable.publish(video.path, self.root / place)
        tables = [self._frames_table(columns) for columns in group.columns]
        self._publish_parquet(layout.DATA_PATH.format(chunk_index=chunk, file_index=file), tables)
        place = layout.EPISODES_PATH.format(chunk_index=chunk, file_index=file)
        self._publish_parquet(place, [self._episodes_table(group, chunk, file)])
        if len(self._tasks) > self._saved_tasks:
            self._publish_parquet(layout.TASKS, [tasks_table(list(self._tasks))])
        durable.write_json(self.root / layout.STATS, _to_json(statistics))
        info = self._info(self._episodes + len(group.rows), self._frames + group.frames)
        durable.write_json(self.root / layout.INFO, info)
        self._episodes, self._frames = info["total_episodes"], info["total_frames"]
        self._files, self._saved_tasks, self._statistics = self._files + 1, len(self._tasks), statistics
        self._group = _Group()

    def close(self) -> None:
        """Publish what waits, and tidy up. Frames that were not saved as an episode are dropped, with a warning."""
        if self._closed:
            return
        if self._episode is not None:
            logger.warning(
                "%s: %d frames were added but not saved as an episode; they are dropped.",
                self.root,
                len(self._episode.tasks),
            )
            self.discard_episode()
        self.commit()
        self._closed = True
        with durable.named_errors(self._staging):
            shutil.rmtree(self._staging)

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
                path = self._staging / f"{self._files:06d}-{name}.mp4"
                self._group.videos[name] = VideoWriter(path, self.fps, width, height, self._codec, GOP, CRF)
            for image in images:
                self._group.videos[name].write(image)
        except SmolactError:
            self._drop_group()
            raise

    def _drop_group(self) -> None:
        """Give up what is not published: a video that was cut off can't be continued."""
        lost = len(self._group.rows)
        for video in self._group.videos.values():
            video.abort()
        self._tasks = dict(list(self._tasks.items())[: self._saved_tasks])
        self._group, self._episode = _Group(), None
        if lost:
            logger.warning(
                "%s: %d episodes could not be written and are lost; the %d before them are on disk.",
                self.root,
                lost,
                self._episodes,
            )

    def _append(self, episode: _Episode) -> None:
        """Turn the episode's frames into a table and a row of metadata, and add them to the group."""
        length = len(episode.tasks)
        for task in episode.tasks:
            self._tasks.setdefault(task, len(self._tasks))
        first, number = self.num_frames, self.num_episodes
        steps = np.arange(length, dtype=np.int64)
        columns: dict[str, Any] = {
            "timestamp": (steps / self.fps).astype(np.float32),
            "frame_index": steps,
            "episode_index": np.full(length, number, dtype=np.int64),
            "index": steps + first,
            "task_index": np.array([self._tasks[task] for task in episode.tasks], dtype=np.int64),
        }
        for name, values in episode.values.items():
            if self.features[name].dtype != "video":
                columns[name] = values if self.features[name].dtype in ("image", "string") else np.stack(values)
        row: dict[str, Any] = {
            "episode_index": number,
            "tasks": list(dict.fromkeys(episode.tasks)),
            "length": length,
            "dataset_from_index": first,
            "dataset_to_index": first + length,
        }
        for name in self._video_keys:
            row[f"videos/{name}/from_timestamp"] = self._group.frames / self.fps
            row[f"videos/{name}/to_timestamp"] = (self._group.frames + length) / self.fps
        for name in self._statistics:
            images = episode.statistics.get(name)
            found = images.result() if images is not None else vector_statistics(self._vectors(columns, name))
            row.update({f"stats/{name}/{statistic}": found[statistic].tolist() for statistic in layout.STATISTICS})
        self._group.columns.append(columns)
        self._group.rows.append(row)
        self._group.statistics.append(episode.statistics)
        self._group.frames += length

    def _with_group(self, group: _Group) -> dict[str, VectorStatistics | ImageStatistics]:
        """The statistics of all that is published and of `group`."""
        together = copy.deepcopy(self._statistics)
        for name, running in together.items():
            if isinstance(running, ImageStatistics):
                for images in group.statistics:
                    running.add(images[name])
            else:
                for columns in group.columns:
                    running.update(self._vectors(columns, name))
        return together

    def _vectors(self, columns: Mapping[str, NDArray[Any]], name: str) -> NDArray[Any]:
        """A column as (frames, *shape): the ones that we add have plain values."""
        return columns[name].reshape(-1, *self.features[name].shape)

    def _frames_table(self, columns: Mapping[str, Any]) -> pa.Table:
        arrays = [to_column(self.features[name], columns[name]) for name in self._schema.names]
        return pa.Table.from_arrays(arrays, schema=self._schema)

    def _episodes_table(self, group: _Group, chunk: int, file: int) -> pa.Table:
        places = {"data/chunk_index": chunk, "data/file_index": file}
        places |= {"meta/episodes/chunk_index": chunk, "meta/episodes/file_index": file}
        for name in self._video_keys:
            places |= {f"videos/{name}/chunk_index": chunk, f"videos/{name}/file_index": file}
        return pa.Table.from_pylist([{**row, **places} for row in group.rows], schema=episodes_schema(self.features))

    def _publish_parquet(self, place: str, tables: list[pa.Table]) -> None:
        """Write tables as row groups of one file, and publish it as `place`."""
        staged = self._staging / place.replace("/", "-")
        with durable.named_errors(self.root / place):
            counters = [name for name in tables[0].schema.names if name in DEFAULT_FEATURES]
            # Minima of images and encodings of what never repeats would only cost; episodes are looked up by number.
            with pq.ParquetWriter(
                staged, tables[0].schema, compression="snappy", use_dictionary=False, write_statistics=counters
            ) as file:
                for table in tables:
                    file.write_table(table)
        durable.publish(staged, self.root / place)

    def _info(self, episodes: int, frames: int) -> dict[str, Any]:
        return {
            "codebase_version": layout.WRITTEN_VERSION,
            "robot_type": self.robot_type,
            "total_episodes": episodes,
            "total_frames": frames,
            "total_tasks": len(self._tasks),
            "chunks_size": layout.FILES_PER_CHUNK,
            "data_files_size_in_mb": layout.DATA_FILE_MB,
            "video_files_size_in_mb": layout.VIDEO_FILE_MB,
            "fps": self.fps,
            "splits": {"train": f"0:{episodes}"},
            "data_path": layout.DATA_PATH,
            "video_path": layout.VIDEO_PATH if self._video_keys else None,
            "features": {name: feature.to_json() for name, feature in self.features.items()},
        }


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


def _to_json(statistics: Mapping[str, VectorStatistics | ImageStatistics]) -> dict[str, dict[str, Any]]:
    return {
        name: {statistic: value.tolist() for statistic, value in running.result().items()}
        for name, running in statistics.items()
    }

"""Publication of finished episodes: as a group, in separate files, metadata last.

Files are staged under names that readers ignore and published in this order: videos, data, `meta/episodes`, tasks,
statistics, and finally `meta/info.json` with the number of episodes. If the process dies at any point, the dataset on disk
is valid and holds exactly the published groups; `resume.py` finds its end.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from smolact import durable
from smolact.datasets import format as layout
from smolact.datasets import splits
from smolact.datasets.format import Feature
from smolact.datasets.resume import ResumeState, Running, quarantine_leftovers
from smolact.datasets.stats import ImageStatistics, VectorStatistics, aggregate, statistics_to_json
from smolact.datasets.tables import episodes_schema, frames_schema, frames_writer, tasks_table, to_column
from smolact.datasets.video import VideoWriter
from smolact.types import Statistics


@dataclass
class FileGroup:
    """Finished episodes that go into the same files.

    Attributes:
        columns: per episode, column name to array, or to a list of PNG bytes.
        rows: per episode, its row of `meta/episodes`, without file indices.
        images: per episode, its cameras' statistics.
        videos: the cameras' staged files.
        frames: the total number of frames.
        finalized: whether the videos are finished; the group then takes no more episodes.
    """

    columns: list[dict[str, Any]] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    images: list[dict[str, ImageStatistics]] = field(default_factory=list)
    videos: dict[str, VideoWriter] = field(default_factory=dict)
    frames: int = 0
    finalized: bool = False


class EpisodeCommitter:
    """Publishes episodes to a dataset on disk and tracks its published state.

    Raises (each method):
        WriteError: the disk is full or refused. Published episodes are intact.
    """

    def __init__(
        self, root: Path, fps: float, features: Mapping[str, Feature], robot_type: str | None
    ) -> None:
        self.root, self.episodes, self.frames, self.tasks = root, 0, 0, 0
        self._fps, self._features, self._robot_type = fps, features, robot_type
        self._video_keys = [name for name, feature in features.items() if feature.dtype == "video"]
        self._files, self._chunk_size = 0, layout.FILES_PER_CHUNK
        self._resumed: ResumeState | None = None
        self._statistics: Running = {
            name: ImageStatistics() if feature.is_image else VectorStatistics(feature.shape)
            for name, feature in features.items()
            if feature.is_image or feature.is_numeric
        }
        self._staging = durable.temporary_beside(root / "staging")

    def begin(self) -> None:
        """Create the folder and an empty dataset in it."""
        with durable.annotate_errors(self.root):
            durable.make_folder(self.root)
            self._staging.mkdir()
        durable.write_json(self.root / layout.INFO, self._info(0, 0, 0))

    def resume(self, state: ResumeState) -> None:
        """Continue the existing dataset whose end is `state`; leftover files are quarantined.

        It first removes unpublished episodes from statistics and tasks: until their files move, these explain the surplus.
        """
        info = state.meta.info
        self._resumed, self._files, self._chunk_size = state, state.next_file, state.chunk_size
        self.episodes, self.frames, self.tasks = (
            info["total_episodes"],
            info["total_frames"],
            len(state.tasks),
        )
        self._statistics = {**self._statistics, **state.running}
        if state.has_extra_statistics:
            self._write_statistics(self._statistics)
        if state.has_extra_tasks:
            with durable.replacing_file(self.root / layout.TASKS) as temporary:
                pq.write_table(tasks_table(state.tasks), temporary)
        quarantine_leftovers(state)
        with durable.annotate_errors(self.root):
            self._staging.mkdir()

    def staged(self, key: str) -> Path:
        """The path where the current group's video of camera `key` is written."""
        return self._staging / f"{self._files:06d}-{key}.mp4"

    def publish(self, group: FileGroup, tasks: Sequence[str]) -> None:
        """Publish a group whose videos are finished. Each step is idempotent: a failed call can be retried."""
        statistics = self._with_group(group)
        chunk, file = divmod(self._files, self._chunk_size)
        for key, video in group.videos.items():
            if video.path.exists():  # else an earlier attempt has moved it
                path = self._path("video_path", layout.VIDEO_PATH, chunk, file, video_key=key)
                durable.publish(video.path, self.root / path)
        tables = [self._frames_table(columns) for columns in group.columns]
        self._write_parquet(self._path("data_path", layout.DATA_PATH, chunk, file), tables)
        path = layout.EPISODES_PATH.format(chunk_index=chunk, file_index=file)
        self._write_parquet(path, [self._episodes_table(group, chunk, file)])
        if len(tasks) > self.tasks:
            self._write_parquet(layout.TASKS, [tasks_table(tasks)])
        self._write_statistics(statistics)
        episodes, frames = self.episodes + len(group.rows), self.frames + group.frames
        self._write_image_counts(statistics, episodes, frames)
        durable.write_json(self.root / layout.INFO, self._info(episodes, frames, len(tasks)))
        self.episodes, self.frames, self.tasks = episodes, frames, len(tasks)
        self._files, self._statistics = self._files + 1, statistics

    def end(self) -> None:
        """Remove the staging folder."""
        with durable.annotate_errors(self._staging):
            shutil.rmtree(self._staging)

    def _with_group(self, group: FileGroup) -> Running:
        """The statistics of all published episodes and of `group`."""
        total = copy.deepcopy(self._statistics)
        for name, running in total.items():
            if isinstance(running, ImageStatistics):
                for images in group.images:
                    running.add(images[name])
            else:
                for columns in group.columns:
                    running.update(columns[name].reshape(-1, *self._features[name].shape))
        return total

    def _write_statistics(self, statistics: Running) -> None:
        durable.write_json(self.root / layout.STATS, statistics_to_json(self._results(statistics)))

    def _results(self, statistics: Running) -> Statistics:
        """The statistics of the dataset; exact, except for cameras whose value counts an earlier writer did not store."""
        results = {name: running.result() for name, running in statistics.items()}
        for name, summary in (self._resumed.summaries if self._resumed is not None else {}).items():
            parts = [{name: summary}, *([{name: results[name]}] if results[name]["count"] else [])]
            results[name] = aggregate(parts)[name]
        return results

    def _write_image_counts(self, statistics: Running, episodes: int, frames: int) -> None:
        """Store the value counts before and after this group; `info.json` later determines which of them are valid."""
        known = self._resumed.summaries if self._resumed is not None else {}
        cameras = [
            name
            for name, running in statistics.items()
            if isinstance(running, ImageStatistics) and name not in known
        ]
        if not cameras:
            return
        states = ((self.episodes, self.frames, self._statistics), (episodes, frames, statistics))
        value = [
            {
                "episodes": number,
                "frames": length,
                "cameras": {name: running.to_json() for name, running in state.items() if name in cameras},  # type: ignore[union-attr]
            }
            for number, length, state in states
        ]
        durable.write_json(self.root / layout.IMAGE_COUNTS, value, indent=None)

    def _path(self, template: str, default: str, chunk: int, file: int, **fields: str) -> str:
        """A file's path by the dataset's own template."""
        info = self._resumed.meta.info if self._resumed is not None else {}
        source = self.root / layout.INFO
        return str(
            layout.fill_template(
                info.get(template) or default, source, **fields, chunk_index=chunk, file_index=file
            )
        )

    def _schema(self, make: Callable[[Mapping[str, Feature]], pa.Schema], name: str) -> pa.Schema:
        """The schema of new files: ours, or that of the existing files if it differs."""
        ours: pa.Schema = make(self._features)
        existing = None if self._resumed is None else getattr(self._resumed, name)
        return ours if existing is None or existing.equals(ours) else existing

    def _frames_table(self, columns: Mapping[str, Any]) -> pa.Table:
        features = self._resumed.meta.features.items() if self._resumed is not None else ()
        annotations = {
            name: pa.list_(pa.null()) for name, feature in features if feature.dtype == layout.LANGUAGE_DTYPE
        }
        schema = self._schema(partial(frames_schema, others=annotations), "frames_schema")
        arrays, length = [], len(columns["index"])
        for column in schema:
            if column.name in self._features:
                arrays.append(to_column(self._features[column.name], columns[column.name]).cast(column.type))
            else:  # a column without recorded values, such as annotations
                empty: list[Any] = [[]] if pa.types.is_list(column.type) else [None]
                arrays.append(pa.array(empty * length, type=column.type))
        return pa.Table.from_arrays(arrays, schema=schema)

    def _episodes_table(self, group: FileGroup, chunk: int, file: int) -> pa.Table:
        indices = {"data/chunk_index": chunk, "data/file_index": file}
        indices |= {"meta/episodes/chunk_index": chunk, "meta/episodes/file_index": file}
        for name in self._video_keys:
            indices |= {f"videos/{name}/chunk_index": chunk, f"videos/{name}/file_index": file}
        schema = self._schema(episodes_schema, "episodes_schema")  # unknown columns stay empty
        return pa.Table.from_pylist([{**row, **indices} for row in group.rows], schema=schema)

    def _write_parquet(self, path: str, tables: list[pa.Table]) -> None:
        """Write tables as row groups of one file, and publish it as `path`."""
        staged = self._staging / path.replace("/", "-")
        schema = tables[0].schema
        with durable.annotate_errors(self.root / path), frames_writer(staged, schema) as file:
            for table in tables:
                file.write_table(table)
        durable.publish(staged, self.root / path)

    def _info(self, episodes: int, frames: int, tasks: int) -> dict[str, Any]:
        totals = {"total_episodes": episodes, "total_frames": frames, "total_tasks": tasks}
        if self._resumed is not None:
            info = self._resumed.meta.info
            return {**info, **totals, "splits": splits.extended(info, episodes)}
        return {
            "codebase_version": layout.WRITTEN_VERSION,
            "robot_type": self._robot_type,
            **totals,
            "chunks_size": layout.FILES_PER_CHUNK,
            "data_files_size_in_mb": layout.DATA_FILE_MB,
            "video_files_size_in_mb": layout.VIDEO_FILE_MB,
            "fps": self._fps,
            "splits": splits.all_in_train(episodes),
            "data_path": layout.DATA_PATH,
            "video_path": layout.VIDEO_PATH if self._video_keys else None,
            "features": {name: feature.to_json() for name, feature in self._features.items()},
        }

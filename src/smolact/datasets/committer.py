"""How finished episodes reach the disk: as a group, in files of their own, metadata last.

The files are staged under names that no reader looks at and published in this order: videos, data, `meta/episodes`,
tasks, statistics, and last `meta/info.json`, which says how many episodes there are. Whenever the process dies, the
dataset on disk is whole and holds exactly the groups that were published; `resume.py` finds where it ended.
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
from numpy.typing import NDArray

from smolact import durable
from smolact.datasets import format as layout
from smolact.datasets import splits
from smolact.datasets.format import DEFAULT_FEATURES, Feature
from smolact.datasets.resume import ResumeState, Running, quarantine_leftovers
from smolact.datasets.stats import ImageStatistics, VectorStatistics, aggregate
from smolact.datasets.tables import episodes_schema, frames_schema, tasks_table, to_column
from smolact.datasets.video import VideoWriter
from smolact.types import Statistics


@dataclass
class FileGroup:
    """Finished episodes that go into the same files.

    Attributes:
        columns: an episode's column name to array, or to a list of PNG bytes.
        rows: its row of `meta/episodes`, without the places of its files.
        images: its cameras' statistics.
        videos: the cameras' files, staged.
        frames: how many frames all of it has.
        sealed: its videos are finished; it takes no more episodes.
    """

    columns: list[dict[str, Any]] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    images: list[dict[str, ImageStatistics]] = field(default_factory=list)
    videos: dict[str, VideoWriter] = field(default_factory=dict)
    frames: int = 0
    finalized: bool = False


class EpisodeCommitter:
    """What of a dataset is on disk for good, and how more of it gets there.

    Raises (each method):
        WriteError: the disk is full or refused. What was published before is whole.
    """

    def __init__(
        self, root: Path, fps: float, features: Mapping[str, Feature], robot_type: str | None
    ) -> None:
        self.root, self.episodes, self.frames, self.tasks = root, 0, 0, 0
        self._fps, self._features, self._robot_type = fps, features, robot_type
        self._video_keys = [name for name, feature in features.items() if feature.dtype == "video"]
        self._files, self._chunk_size = 0, layout.FILES_PER_CHUNK
        self._found: ResumeState | None = None
        self._statistics: Running = {
            name: ImageStatistics() if feature.is_image else VectorStatistics(feature.shape)
            for name, feature in features.items()
            if feature.is_image or feature.is_numeric
        }
        self._staging = durable.temporary_beside(root / "staging")

    def begin(self) -> None:
        """Make the folder, and in it a dataset without episodes."""
        with durable.annotate_errors(self.root):
            durable.make_folder(self.root)
            self._staging.mkdir()
        durable.write_json(self.root / layout.INFO, self._info(0, 0, 0))

    def resume(self, found: ResumeState) -> None:
        """Continue the dataset that is there: `found` says where it ended. What a dead writer left is put aside.

        Statistics and tasks that count the episode it lost come first: as long as that lies there, a check sees why they do.
        """
        info = found.meta.info
        self._found, self._files, self._chunk_size = found, found.next_file, found.chunk_size
        self.episodes, self.frames, self.tasks = (
            info["total_episodes"],
            info["total_frames"],
            len(found.tasks),
        )
        self._statistics = {**self._statistics, **found.running}
        if found.statistics_ran_ahead:
            self._write_statistics(self._statistics)
        if found.tasks_ran_ahead:
            with durable.replacing_file(self.root / layout.TASKS) as temporary:
                pq.write_table(tasks_table(found.tasks), temporary)
        quarantine_leftovers(found)
        with durable.annotate_errors(self.root):
            self._staging.mkdir()

    def staged(self, key: str) -> Path:
        """Where the video of camera `key` is to be written for the group at hand."""
        return self._staging / f"{self._files:06d}-{key}.mp4"

    def publish(self, group: FileGroup, tasks: Sequence[str]) -> None:
        """Publish a group whose videos are finished. Each step can be repeated: a failed call can be made again."""
        statistics = self._with_group(group)
        chunk, file = divmod(self._files, self._chunk_size)
        for key, video in group.videos.items():
            if video.path.exists():  # else an earlier try has moved it
                place = self._place("video_path", layout.VIDEO_PATH, chunk, file, video_key=key)
                durable.publish(video.path, self.root / place)
        tables = [self._frames_table(columns) for columns in group.columns]
        self._write_parquet(self._place("data_path", layout.DATA_PATH, chunk, file), tables)
        place = layout.EPISODES_PATH.format(chunk_index=chunk, file_index=file)
        self._write_parquet(place, [self._episodes_table(group, chunk, file)])
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
        """The statistics of all that is published and of `group`."""
        together = copy.deepcopy(self._statistics)
        for name, running in together.items():
            if isinstance(running, ImageStatistics):
                for images in group.images:
                    running.add(images[name])
            else:
                for columns in group.columns:
                    running.update(as_vectors(columns, name, self._features[name]))
        return together

    def _write_statistics(self, statistics: Running) -> None:
        results = self._results(statistics).items()
        plain = {key: {name: value.tolist() for name, value in values.items()} for key, values in results}
        durable.write_json(self.root / layout.STATS, plain)

    def _results(self, statistics: Running) -> Statistics:
        """The statistics of the whole dataset: exact, but for cameras whose counts an earlier writer did not keep."""
        results = {name: running.result() for name, running in statistics.items()}
        for name, before in (self._found.summaries if self._found is not None else {}).items():
            together = [{name: before}, *([{name: results[name]}] if results[name]["count"] else [])]
            results[name] = aggregate(together)[name]
        return results

    def _write_image_counts(self, statistics: Running, episodes: int, frames: int) -> None:
        """Keep the counts of all images before and after this group: `info.json` tells later which of them hold."""
        known = self._found.summaries if self._found is not None else {}
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

    def _place(self, template: str, usual: str, chunk: int, file: int, **more: str) -> str:
        """Where a file goes, by the dataset's own template."""
        info = self._found.meta.info if self._found is not None else {}
        source = self.root / layout.INFO
        return str(
            layout.fill_template(
                info.get(template) or usual, source, **more, chunk_index=chunk, file_index=file
            )
        )

    def _schema(self, make: Callable[[Mapping[str, Feature]], pa.Schema], name: str) -> pa.Schema:
        """The schema of new files: ours, or that of the files which are there if it is another."""
        ours: pa.Schema = make(self._features)
        there = None if self._found is None else getattr(self._found, name)
        return ours if there is None or there.equals(ours) else there

    def _frames_table(self, columns: Mapping[str, Any]) -> pa.Table:
        there = self._found.meta.features.items() if self._found is not None else ()
        silent = {
            name: pa.list_(pa.null()) for name, feature in there if feature.dtype == layout.LANGUAGE_DTYPE
        }
        schema = self._schema(partial(frames_schema, others=silent), "frames_schema")
        arrays = [
            to_column(self._features[field.name], columns[field.name]).cast(field.type)
            if field.name in self._features
            else nothing(field.type, len(columns["index"]))
            for field in schema
        ]
        return pa.Table.from_arrays(arrays, schema=schema)

    def _episodes_table(self, group: FileGroup, chunk: int, file: int) -> pa.Table:
        places = {"data/chunk_index": chunk, "data/file_index": file}
        places |= {"meta/episodes/chunk_index": chunk, "meta/episodes/file_index": file}
        for name in self._video_keys:
            places |= {f"videos/{name}/chunk_index": chunk, f"videos/{name}/file_index": file}
        schema = self._schema(episodes_schema, "episodes_schema")  # columns that we do not know stay empty
        return pa.Table.from_pylist([{**row, **places} for row in group.rows], schema=schema)

    def _write_parquet(self, place: str, tables: list[pa.Table]) -> None:
        """Write tables as row groups of one file, and publish it as `place`."""
        staged = self._staging / place.replace("/", "-")
        with durable.annotate_errors(self.root / place):
            counters = [name for name in tables[0].schema.names if name in DEFAULT_FEATURES]
            # Minima of images and encodings of what never repeats would only cost; episodes are looked up by number.
            with pq.ParquetWriter(
                staged,
                tables[0].schema,
                compression="snappy",
                use_dictionary=False,
                write_statistics=counters,
            ) as file:
                for table in tables:
                    file.write_table(table)
        durable.publish(staged, self.root / place)

    def _info(self, episodes: int, frames: int, tasks: int) -> dict[str, Any]:
        totals = {"total_episodes": episodes, "total_frames": frames, "total_tasks": tasks}
        if self._found is not None:
            info = self._found.meta.info
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


def nothing(kind: pa.DataType, rows: int) -> pa.Array:
    """A column that a recorder has nothing for, such as annotations, which are made later: empty lists, or gaps."""
    return pa.array([[]] * rows, type=kind) if pa.types.is_list(kind) else pa.nulls(rows, kind)


def as_vectors(columns: Mapping[str, Any], name: str, feature: Feature) -> NDArray[Any]:
    """A column as (frames, *shape): one of plain values has no shape of its own."""
    vectors: NDArray[Any] = columns[name].reshape(-1, *feature.shape)
    return vectors

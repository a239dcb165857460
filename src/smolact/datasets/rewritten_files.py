"""The data and video files of an edited dataset: rows are copied with new indices, video packets without re-encoding."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from smolact import durable
from smolact.datasets import format as layout
from smolact.datasets.cameras import encode_image
from smolact.datasets.depth import check_no_depth, removal_advice
from smolact.datasets.edit import EditPlan
from smolact.datasets.encoders import choose_encoder
from smolact.datasets.faults import Progress
from smolact.datasets.format import Feature
from smolact.datasets.remux import Cut, Joiner, PacketIndex
from smolact.datasets.rewritten_columns import Subtasks, rewritten_column, rewritten_schema
from smolact.datasets.rewritten_statistics import DatasetStatistics, is_complete, valid_statistics
from smolact.datasets.sources import Source
from smolact.datasets.stats import LARGEST, ImageStatistics, vector_statistics
from smolact.datasets.tables import column_array, frames_writer, to_column
from smolact.datasets.video import VideoWriter
from smolact.errors import DatasetError
from smolact.types import Statistics

logger = logging.getLogger(__name__)


class Rewriter:
    """Writes `data/` and `videos/` of the new dataset of `plan` below `folder`.

    Attributes:
        features: every column and camera.
        rows: per episode, its row of `meta/episodes` without statistics.
        totals: the statistics over all episodes.
        subtasks: LeRobot's subtasks, if there are any.
    """

    def __init__(self, plan: EditPlan, folder: Path, progress: Progress) -> None:
        self.plan, self.folder, self.progress = plan, folder, progress
        self.features = plan.features()
        first = plan.sources[0].meta
        self.fps, self.info = first.fps, first.info
        self.schema = rewritten_schema(plan, self.features)
        for source in plan.sources:
            check_no_depth(source.meta, list(plan.cameras), "storing it as another kind of picture")
        self._statistics = DatasetStatistics(plan, self.features)
        self.totals: Statistics = {}
        self.subtasks = Subtasks(plan)
        self.rows: list[dict[str, Any]] = []
        self.statistics: list[Statistics] = []
        self.tasks = _tasks(plan)

    def write(self) -> None:
        """Write the files.

        Raises:
            DatasetError: a source is corrupt.
        """
        first = 0
        numbers = {task: number for number, task in enumerate(self.tasks)}
        for number, (source_index, episode) in enumerate(self.plan.episodes):
            source = self.plan.sources[source_index]
            length = int(source.meta.episodes.length[episode])
            row = {**source.extra_metadata(episode), "episode_index": number, "length": length}
            self.rows.append({**row, "dataset_from_index": first, "dataset_to_index": first + length})
            first += length
        self._data(numbers)
        self.tasks = list(numbers)  # frames may have tasks that their episode's metadata does not name
        for name, feature in self.features.items():
            if feature.dtype == "video":
                self._videos(name, feature)
        self.totals = self._statistics.result(self.statistics)

    def _data(self, numbers: dict[str, int]) -> None:
        limit = self._limit("data_files_size_in_mb", layout.DATA_FILE_MB)
        file, size = -1, math.inf
        writer: Any = None
        with contextlib.ExitStack() as stack:
            for number, (source_index, episode) in enumerate(self.plan.episodes):
                table = self._table(number, source_index, episode, numbers)
                if size + table.nbytes > limit or self.plan.version != "v3.0":
                    stack.close()
                    file, size = file + 1, 0
                    path = self._new_file(layout.DATA_PATH, layout.DATA_PATH_V2, file, number)
                    writer = stack.enter_context(frames_writer(path, self.schema))
                writer.write_table(table)
                size += table.nbytes
                self._set_file_index(number, "data", file)
                self.progress("data", number + 1, len(self.plan.episodes))

    def _table(self, number: int, source_index: int, episode: int, numbers: dict[str, int]) -> pa.Table:
        """The rows of an episode with its new indices; also records the episode's statistics and tasks."""
        source = self.plan.sources[source_index]
        row, old = self.rows[number], source.table(episode)
        path = source.data_file(episode)
        steps = np.arange(row["length"], dtype=np.int64)
        indices = column_array(old, "task_index", (1,), path).reshape(-1)
        unknown = set(indices.tolist()) - source.meta.tasks.keys()
        if unknown:
            raise DatasetError(f"{path}: task_index {sorted(unknown)[0]} is no task of {source.meta.root}.")
        texts = [self.plan.renamed.get(source.meta.tasks[i], source.meta.tasks[i]) for i in indices.tolist()]
        row["tasks"] = list(dict.fromkeys(texts))
        new = {
            "episode_index": np.full(len(steps), number, dtype=np.int64),
            "index": steps + row["dataset_from_index"],
            "task_index": np.array(
                [numbers.setdefault(text, len(numbers)) for text in texts], dtype=np.int64
            ),
        }
        if layout.SUBTASK_INDEX in self.features:
            old_subtasks = column_array(old, layout.SUBTASK_INDEX, (1,), path).reshape(-1)
            new[layout.SUBTASK_INDEX] = self.subtasks.renumbered(source_index, old_subtasks, path)
        columns = []
        for field in self.schema:
            feature = self.features.get(field.name)
            if field.name in new:
                columns.append(pa.array(new[field.name]).cast(field.type))
            elif feature is not None and field.name in self.plan.cameras:
                images = source.images(field.name, episode)
                columns.append(to_column(feature, [encode_image(image) for image in images]))
            else:
                columns.append(rewritten_column(old, field, self.features, path))
        table = pa.Table.from_arrays(columns, schema=self.schema)
        changed = {
            name for name in new if (new[name] != column_array(old, name, (1,), path).reshape(-1)).any()
        }
        self.statistics.append(self._episode_statistics(source, episode, table, changed))
        return table

    def _episode_statistics(
        self, source: Source, episode: int, table: pa.Table, changed: Collection[str]
    ) -> Statistics:
        stored = {
            name: values
            for name, values in source.statistics(episode).items()
            if not self.plan.recompute or name in source.meta.depth_keys
        }
        statistics: Statistics = {}
        for name, feature in self.features.items():
            known = valid_statistics(stored.get(name, {}), feature)
            if feature.is_depth:  # their statistics are in the sensor's unit, not in the stored one
                statistics |= {name: known} if known else {}
            elif feature.is_image:
                if not {"min", "max", "mean", "std", "count"} <= known.keys():
                    known = self._image_statistics(source, name, episode)
                statistics[name] = known
            elif feature.is_numeric:
                values = column_array(table, name, feature.shape, self.folder).reshape(-1, *feature.shape)
                self._statistics.add_vectors(name, values, name in changed)
                if name in changed or not is_complete(known):
                    if not (np.abs(values.astype(np.float64)) <= LARGEST).all():
                        raise DatasetError(
                            f"{source.meta.root}, episode {episode}: '{name}' is not finite. Delete that episode: smolact "
                            f"dataset delete --episodes=[{episode}]"
                        )
                    known = vector_statistics(values)
                statistics[name] = known
        return statistics

    def _image_statistics(self, source: Source, name: str, episode: int) -> Any:
        statistics = ImageStatistics()
        for image in source.images(name, episode):
            statistics.update(image)
        self._statistics.add_images(name, statistics)
        return statistics.result()

    def _videos(self, name: str, feature: Feature) -> None:
        limit = self._limit("video_files_size_in_mb", layout.VIDEO_FILE_MB)
        file, num_encoded = -1, 0
        joiner: Joiner | None = None
        index: PacketIndex | None = None
        encoded = self.folder / f"{durable.TEMPORARY_PREFIX}encoded.mp4"
        try:
            for number, (source_index, episode) in enumerate(self.plan.episodes):
                source, span = self.plan.sources[source_index], None
                if source.meta.features[name].dtype == "video":
                    cut = source.cut(name, episode)
                    if index is None or index.path != cut.path:
                        index = PacketIndex(cut.path)
                    span = index.packets(cut)
                packet_index = index
                if span is None or packet_index is None:
                    if feature.is_depth:
                        raise _not_cut(source, name, episode)
                    self._encode(encoded, source, name, episode, feature)
                    packet_index = PacketIndex(encoded)
                    span = packet_index.packets(Cut(encoded, 0, self.rows[number]["length"]))
                    num_encoded += source.meta.features[name].dtype == "video"
                assert span is not None  # an encoded file begins with a key frame and holds nothing else
                size = int(packet_index.sizes[span[0] : span[1]].sum())
                if (
                    joiner is None
                    or not joiner.fits(packet_index)
                    or joiner.bytes + size > limit
                    or self.plan.version != "v3.0"
                ):
                    if joiner is not None:
                        joiner.close()
                    file += 1
                    path = self._new_file(
                        layout.VIDEO_PATH, layout.VIDEO_PATH_V2, file, number, video_key=name
                    )
                    joiner = Joiner(path, self.fps)
                row = self.rows[number]
                row[f"videos/{name}/from_timestamp"] = joiner.frames / self.fps
                joiner.add(packet_index, *span)
                row[f"videos/{name}/to_timestamp"] = joiner.frames / self.fps
                self._set_file_index(number, f"videos/{name}", file)
                self.progress(name, number + 1, len(self.plan.episodes))
        finally:
            if joiner is not None:
                joiner.close()
            encoded.unlink(missing_ok=True)
        if num_encoded:
            logger.warning(
                "%s: %d of %d episodes can't be cut out of their video as they are (they do not begin with a key frame, or "
                "end among frames that need a later one) and were encoded again; the others are as they were.",
                name,
                num_encoded,
                len(self.plan.episodes),
            )

    def _encode(self, path: Path, source: Source, name: str, episode: int, feature: Feature) -> None:
        _, height, width = feature.image_shape
        codec = choose_encoder(None, [(height, width)], [feature.info.get("video.codec", "av1")])
        with VideoWriter(path, self.fps, width, height, codec) as video:
            for image in source.images(name, episode):
                video.write(image)

    def _new_file(self, v3: str, v2: str, file: int, number: int, **fields: str) -> Path:
        """The path of the next file, by the template of the version, in a folder that exists."""
        if self.plan.version == "v3.0":
            chunk, file = divmod(file, layout.FILES_PER_CHUNK)
            name = v3.format(chunk_index=chunk, file_index=file, **fields)
        else:
            chunk = number // layout.FILES_PER_CHUNK
            name = v2.format(episode_chunk=chunk, episode_index=number, **fields)
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        return self.folder / name

    def _set_file_index(self, number: int, prefix: str, file: int) -> None:
        chunk, file = divmod(file, layout.FILES_PER_CHUNK)
        self.rows[number] |= {f"{prefix}/chunk_index": chunk, f"{prefix}/file_index": file}

    def _limit(self, name: str, default: int) -> float:
        """The size limit of a file in bytes."""
        value = self.info.get(name, default)
        return 2**20 * (value if isinstance(value, (int, float)) and value > 0 else default)


def _not_cut(source: Source, name: str, episode: int) -> DatasetError:
    return DatasetError(
        f"{source.meta.root}: episode {episode} can't be cut out of its video of '{name}' as it is (it does not begin with a "
        f"key frame, or ends among frames that need a later one), and encoding depth again would change it. "
        f"{removal_advice(source.meta, [name])}"
    )


def _tasks(plan: EditPlan) -> list[str]:
    """The tasks that the new dataset's episodes have, in the order of their sources."""
    chosen = {
        (number, task)
        for number, episode in plan.episodes
        for task in plan.sources[number].meta.episodes.tasks[episode]
    }
    listed: Iterator[tuple[int, str]] = (
        (number, task)
        for number, source in enumerate(plan.sources)
        for _, task in sorted(source.meta.tasks.items())
    )
    return list(dict.fromkeys(plan.renamed.get(pair[1], pair[1]) for pair in listed if pair in chosen))

"""From a plan to a dataset: built beside the old one, checked, and only then put in its place.

What is not named in a plan stays as it was: rows are copied, videos are cut and joined as they are. Only a cut that
needs frames outside of it is encoded again, which is said.
"""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from smolact import durable
from smolact.datasets import format as layout
from smolact.datasets.aside import is_litter
from smolact.datasets.cameras import encode_image
from smolact.datasets.edit import Plan
from smolact.datasets.encoders import choose_encoder
from smolact.datasets.format import DEFAULT_FEATURES, Feature
from smolact.datasets.inspection import Progress, check_dataset, no_progress
from smolact.datasets.lock import FolderLock
from smolact.datasets.remux import Cut, Index, Joiner
from smolact.datasets.rewritten_metadata import write_metadata
from smolact.datasets.sources import Source
from smolact.datasets.stats import LARGEST, ImageStatistics, vector_statistics
from smolact.datasets.tables import ARROW_TYPES, column_array, frames_schema, to_column
from smolact.datasets.video import VideoWriter
from smolact.errors import ConfigError, DatasetError
from smolact.types import Statistics

logger = logging.getLogger(__name__)

_REMADE = ("data", "videos", "meta", "images")


def build(plan: Plan, output: Path, quick: bool = False, progress: Progress = no_progress) -> Path:
    """Make the dataset of `plan` in the new folder `output`, check it, and return `output`.

    Args:
        plan: what it is made of.
        output: must not exist.
        quick: do not decode the pictures of the result.
        progress: told of each episode.

    Raises:
        ConfigError: the folder exists.
        DatasetError: a source is damaged; or what came out has a fault, and is not kept.
        WriteError: the disk is full or refused; nothing is left of the new dataset.
    """
    if output.exists():
        raise ConfigError(f"{output} exists already. Choose another --output, or remove it first.")
    with durable.replacing_folder(output) as folder:
        _build_in(plan, folder, quick, progress)
    return output


def replace(plan: Plan, quick: bool = False, progress: Progress = no_progress) -> Path:
    """Make the dataset of `plan` and put it in the place of its only source, whose folder is returned.

    Raises:
        as `build` does; the old dataset is then as it was.
    """
    (source,) = plan.sources
    with FolderLock(source.meta.root):
        if layout.read_json(source.meta.root / layout.INFO) != source.meta.info:
            raise DatasetError(
                f"{source.meta.root} was changed by another process meanwhile. Run this again."
            )
        durable.remove_folder(exchange(plan, quick, progress))
    return source.meta.root.resolve()


def exchange(
    plan: Plan, quick: bool = False, progress: Progress = no_progress, leave: Collection[Path] = ()
) -> Path:
    """Like `replace`, but the old dataset is kept: returns the folder beside the new one where it is now.

    The folders of the old one that `leave` names are not taken along. It is the caller's to hold the lock.
    """
    (source,) = plan.sources
    root = source.meta.root.resolve()
    if root.parent.name == "snapshots":
        raise ConfigError(
            f"{root} is a copy that the Hub's cache keeps. Give --output=FOLDER for the new dataset."
        )
    old = durable.replaced(root)
    if old.exists():
        raise ConfigError(
            f"{old} is the dataset as it was before an edit that was killed at its very end. Look at it, then remove it, or "
            f"have it put aside: smolact dataset repair --dataset.root={root}"
        )
    warn_of_leftovers(root)
    fresh = durable.temporary_beside(root)
    with durable.replacing_folder(fresh) as folder:
        _build_in(plan, folder, quick, progress)
        _carry_folders(root, folder, leave)
    try:
        return durable.exchange_folders(root, fresh)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise


def warn_of_leftovers(root: Path) -> None:
    """Name what an edit that was killed has left beside the dataset; it may also be one at work, so it is not removed."""
    left = durable.leftovers_beside(root)
    if left:
        logger.warning(
            "%s: beside it lies what an edit that was killed has left (or one at work has now): %s. Remove it when "
            "nothing writes there.",
            root,
            ", ".join(path.name for path in left),
        )


def restore(root: Path) -> bool:
    """Put the old dataset back that an edit had moved from the folder `root` when it was killed; whether there was one.

    Raises:
        WriteError: the edit is not dead, or the disk refused.
    """
    if not durable.is_half_replaced(root):
        return False
    old = durable.replaced(root)
    with FolderLock(old), durable.named_errors(root):
        if not durable.is_half_replaced(root):
            return False
        old.rename(root)
        durable.sync_folder(root.parent)
    logger.warning("%s: an edit was killed before it was done. The dataset as it was before is back.", root)
    return True


def _carry_folders(root: Path, fresh: Path, leave: Collection[Path]) -> None:
    """Take along the folders that are no part of the format, such as what a recorder has put aside."""
    for path in root.iterdir():
        if path.is_dir() and path.name not in _REMADE and path not in leave and not is_litter(path):
            shutil.copytree(path, fresh / path.name, symlinks=True)


def _build_in(plan: Plan, folder: Path, quick: bool, progress: Progress) -> None:
    with durable.named_errors(folder):
        for path in plan.sources[0].meta.root.iterdir():
            if len(plan.sources) == 1 and path.is_file() and not is_litter(path):
                shutil.copy2(path, folder / path.name)
        _Rewriter(plan, folder, progress).run()
    errors = [fault for fault in check_dataset(folder, quick, progress) if fault.severity == "error"]
    if errors:
        raise DatasetError(
            f"The new dataset would have {len(errors)} faults, and was not kept; the old one is as it was. The first: "
            f"{errors[0]} See whether the old one has it too: smolact dataset check"
        )


class _Rewriter:
    """The files of one new dataset, as they grow."""

    def __init__(self, plan: Plan, folder: Path, progress: Progress) -> None:
        self.plan, self.folder, self.progress = plan, folder, progress
        self.features = plan.features()
        first = plan.sources[0].meta
        self.fps, self.info = first.fps, first.info
        self.schema = _schema(plan, self.features)
        self.rows: list[dict[str, Any]] = []
        self.statistics: list[Statistics] = []
        self.tasks = _tasks(plan)

    def run(self) -> None:
        first = 0
        numbers = {task: number for number, task in enumerate(self.tasks)}
        for number, (place, episode) in enumerate(self.plan.episodes):
            source = self.plan.sources[place]
            length = int(source.meta.episodes.length[episode])
            row = {"episode_index": number, "length": length}
            self.rows.append({**row, "dataset_from_index": first, "dataset_to_index": first + length})
            first += length
        self._data(numbers)
        self.tasks = list(numbers)  # frames may have tasks that their episode's metadata does not name
        for name, feature in self.features.items():
            if feature.dtype == "video":
                self._videos(name, feature)
        write_metadata(self.plan, self.folder, self.features, self.tasks, self.rows, self.statistics)

    def _data(self, numbers: dict[str, int]) -> None:
        limit = self._limit("data_files_size_in_mb", layout.DATA_FILE_MB)
        file = -1
        writer: pq.ParquetWriter | None = None
        size = 0
        try:
            for number, (place, episode) in enumerate(self.plan.episodes):
                table = self._table(number, self.plan.sources[place], episode, numbers)
                if writer is None or size + table.nbytes > limit or self.plan.version != "v3.0":
                    if writer is not None:
                        writer.close()
                    file, size = file + 1, 0
                    path = self.folder / self._place(layout.DATA_PATH, layout.DATA_PATH_V2, file, number)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    counters = [name for name in self.schema.names if name in DEFAULT_FEATURES]
                    options = {"use_dictionary": False, "write_statistics": counters}
                    writer = pq.ParquetWriter(path, self.schema, compression="snappy", **options)
                writer.write_table(table)
                size += table.nbytes
                self._place_row(number, "data", file)
                self.progress("data", number + 1, len(self.plan.episodes))
        finally:
            if writer is not None:
                writer.close()

    def _table(self, number: int, source: Source, episode: int, numbers: dict[str, int]) -> pa.Table:
        """The rows of an episode under their new numbers; its statistics and tasks are noted by the way."""
        row, old = self.rows[number], source.table(episode)
        path = source.meta.root / source.meta.episodes.data_path[episode]
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
        columns = []
        for field in self.schema:
            feature = self.features.get(field.name)
            if field.name in new:
                columns.append(pa.array(new[field.name]).cast(field.type))
            elif feature is not None and field.name in self.plan.cameras:
                images = source.images(field.name, episode)
                columns.append(to_column(feature, [encode_image(image) for image in images]))
            elif field.name in old.column_names:
                columns.append(_cast(old.column(field.name), field, path))
            else:
                raise DatasetError(f"{path} has no column '{field.name}'. Fetch the dataset again.")
        table = pa.Table.from_arrays(columns, schema=self.schema)
        self.statistics.append(self._episode_statistics(source, episode, table))
        return table

    def _episode_statistics(self, source: Source, episode: int, table: pa.Table) -> Statistics:
        kept = {} if self.plan.recompute else source.statistics(episode)
        found: Statistics = {}
        for name, feature in self.features.items():
            known = _usable(kept.get(name, {}), feature)
            complete = all(statistic in known for statistic in layout.STATISTICS)
            if feature.is_image:
                if not {"min", "max", "mean", "std", "count"} <= known.keys():
                    known = self._image_statistics(source, name, episode)
                found[name] = known
            elif feature.dtype in ARROW_TYPES and feature.dtype != "string":
                if name in ("episode_index", "index", "task_index") or not complete:
                    values = column_array(table, name, feature.shape, self.folder)
                    if not (np.abs(values.astype(np.float64)) <= LARGEST).all():
                        raise DatasetError(
                            f"{source.meta.root}, episode {episode}: '{name}' is not finite. Delete that episode: smolact "
                            f"dataset delete --episodes=[{episode}]"
                        )
                    known = vector_statistics(values.reshape(-1, *feature.shape))
                found[name] = known
        return found

    def _image_statistics(self, source: Source, name: str, episode: int) -> Any:
        statistics = ImageStatistics()
        for image in source.images(name, episode):
            statistics.update(image)
        return statistics.result()

    def _videos(self, name: str, feature: Feature) -> None:
        limit = self._limit("video_files_size_in_mb", layout.VIDEO_FILE_MB)
        file, again = -1, 0
        joiner: Joiner | None = None
        index: Index | None = None
        encoded = self.folder / f"{durable.TEMPORARY_PREFIX}encoded.mp4"
        try:
            for number, (place, episode) in enumerate(self.plan.episodes):
                source, span = self.plan.sources[place], None
                if source.meta.features[name].dtype == "video":
                    cut = source.cut(name, episode)
                    if index is None or index.path != cut.path:
                        index = Index(cut.path)
                    span = index.packets(cut)
                used = index
                if span is None or used is None:
                    self._encode(encoded, source, name, episode, feature)
                    used = Index(encoded)
                    span = used.packets(Cut(encoded, 0, self.rows[number]["length"]))
                    again += source.meta.features[name].dtype == "video"
                if span is None:
                    raise DatasetError(
                        f"{name}: episode {episode} could not be encoded so that it can be joined."
                    )
                size = int(used.sizes[span[0] : span[1]].sum())
                if (
                    joiner is None
                    or not joiner.fits(used)
                    or joiner.bytes + size > limit
                    or self.plan.version != "v3.0"
                ):
                    if joiner is not None:
                        joiner.close()
                    file += 1
                    path = self.folder / self._place(
                        layout.VIDEO_PATH, layout.VIDEO_PATH_V2, file, number, video_key=name
                    )
                    path.parent.mkdir(parents=True, exist_ok=True)
                    joiner = Joiner(path, self.fps)
                row = self.rows[number]
                row[f"videos/{name}/from_timestamp"] = joiner.frames / self.fps
                joiner.add(used, *span)
                row[f"videos/{name}/to_timestamp"] = joiner.frames / self.fps
                self._place_row(number, f"videos/{name}", file)
                self.progress(name, number + 1, len(self.plan.episodes))
        finally:
            if joiner is not None:
                joiner.close()
            encoded.unlink(missing_ok=True)
        if again:
            logger.warning(
                "%s: %d of %d episodes can't be cut out of their video as they are (they do not begin with a key frame, or "
                "end among frames that need a later one) and were encoded again; the others are as they were.",
                name,
                again,
                len(self.plan.episodes),
            )

    def _encode(self, path: Path, source: Source, name: str, episode: int, feature: Feature) -> None:
        _, height, width = feature.image_shape
        codec = choose_encoder(None, [(height, width)], [feature.info.get("video.codec", "av1")])
        with VideoWriter(path, self.fps, width, height, codec) as video:
            for image in source.images(name, episode):
                video.write(image)

    def _place(self, v3: str, v2: str, file: int, number: int, **more: str) -> str:
        if self.plan.version == "v3.0":
            chunk, file = divmod(file, layout.FILES_PER_CHUNK)
            return v3.format(chunk_index=chunk, file_index=file, **more)
        return v2.format(episode_chunk=number // layout.FILES_PER_CHUNK, episode_index=number, **more)

    def _place_row(self, number: int, prefix: str, file: int) -> None:
        chunk, file = divmod(file, layout.FILES_PER_CHUNK)
        self.rows[number] |= {f"{prefix}/chunk_index": chunk, f"{prefix}/file_index": file}

    def _limit(self, name: str, usual: int) -> float:
        """Bytes of a file."""
        value = self.info.get(name, usual)
        return 2**20 * (value if isinstance(value, (int, float)) and value > 0 else usual)


def _tasks(plan: Plan) -> list[str]:
    """The tasks of the new dataset: those that its episodes have, in the order of their sources."""
    chosen = {
        (place, task)
        for place, episode in plan.episodes
        for task in plan.sources[place].meta.episodes.tasks[episode]
    }
    listed: Iterator[tuple[int, str]] = (
        (place, task)
        for place, source in enumerate(plan.sources)
        for _, task in sorted(source.meta.tasks.items())
    )
    return list(dict.fromkeys(plan.renamed.get(pair[1], pair[1]) for pair in listed if pair in chosen))


def _schema(plan: Plan, features: dict[str, Feature]) -> pa.Schema:
    unknown = [
        name
        for name, feature in features.items()
        if feature.dtype not in (*ARROW_TYPES, *layout.IMAGE_DTYPES)
    ]
    if unknown:
        raise DatasetError(
            f"{plan.sources[0].meta.root}: the feature '{unknown[0]}' has the dtype '{features[unknown[0]].dtype}', which "
            "can't be copied here. Remove it from the dataset with the tool that made it."
        )
    return frames_schema(features, plan.version)


def _usable(statistics: Mapping[str, NDArray[Any]], feature: Feature) -> dict[str, NDArray[Any]]:
    """Statistics in the shape that they must have, a camera's (C, 1, 1); none if one does not fit or is not finite."""
    shape = (feature.image_shape[0], 1, 1) if feature.is_image else feature.shape
    shapes = {name: (1,) if name == "count" else shape for name in statistics}
    if any(
        value.size != math.prod(shapes[name]) or not np.isfinite(value).all()
        for name, value in statistics.items()
    ):
        return {}
    return {name: value.reshape(shapes[name]) for name, value in statistics.items()}


def _cast(column: Any, field: Any, path: Path) -> Any:
    values = column.combine_chunks()
    if isinstance(values, pa.ChunkedArray):  # PyArrow before 17
        values = pa.concat_arrays(values.chunks)
    if isinstance(values, pa.ExtensionArray):
        values = values.storage
    try:
        return values.cast(field.type)
    except pa.ArrowException as error:
        raise DatasetError(
            f"{path}: '{field.name}' holds {values.type}, expected {field.type} ({error})."
        ) from error

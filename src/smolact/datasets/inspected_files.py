"""Faults in the files of a dataset: rows, images and videos."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smolact.datasets import format as layout
from smolact.datasets.annotations import annotation_faults
from smolact.datasets.cameras import Columns, check_depth_image, decode_image
from smolact.datasets.depth import bits_of
from smolact.datasets.faults import Fault, Progress
from smolact.datasets.format import DEFAULT_FEATURES, Feature
from smolact.datasets.metadata import LeRobotDatasetMetadata
from smolact.datasets.rows import EpisodeRows
from smolact.datasets.stats import LARGEST
from smolact.datasets.tables import column_array, read_table
from smolact.datasets.video import VideoReader
from smolact.errors import DatasetError

TIME_TOLERANCE = 1e-4  # seconds; LeRobot's limit for finding a frame
DECODE_BATCH = 32


def data_faults(
    meta: LeRobotDatasetMetadata,
    quick: bool,
    progress: Progress,
    columns: dict[str, list[NDArray[Any]]],
    only: Collection[int] | None = None,
    features: Collection[str] | None = None,
) -> Iterator[Fault]:
    """Check every data file, or those of the episodes `only`; of the columns, all or the counters and `features`.

    Numeric columns are added to `columns`, to compare with the statistics.
    """
    done = 0
    by_file: dict[str, list[int]] = {}
    for episode, file in enumerate(meta.episodes.data_path):
        by_file.setdefault(file, []).append(episode)
    indices: dict[str, NDArray[Any]] = {}
    for file, episodes in by_file.items():
        selected = episodes if only is None else [episode for episode in episodes if episode in only]
        if not selected:
            continue
        try:
            yield from _data_file_faults(meta, file, episodes, selected, quick, columns, indices, features)
        except DatasetError as error:
            yield Fault("error", file, str(error))
        done += len(episodes)
        progress("data", done, meta.total_episodes)
    if sum(map(len, indices.values())) == meta.total_frames:
        yield from _order_faults(indices)


def _order_faults(indices: Mapping[str, NDArray[Any]]) -> Iterator[Fault]:
    """Check that the rows, by file name, are in frame order, as LeRobot expects."""
    first = 0
    for file, index in sorted(indices.items()):
        expected = np.arange(first, first + len(index))
        first += len(index)
        if (index != expected).any():
            row = int(np.flatnonzero(index != expected)[0])
            yield Fault(
                "warning",
                file,
                f"its rows are in another order than the frames: index is {index[row]} in row {row}, expected {expected[row]}. They "
                "are read in their right order here; LeRobot, which goes by their place, would mix up episodes. smolact dataset "
                "compact puts them in order.",
            )


def _data_file_faults(
    meta: LeRobotDatasetMetadata,
    file: str,
    episodes: list[int],
    selected: list[int],
    quick: bool,
    columns: dict[str, list[NDArray[Any]]],
    indices: dict[str, NDArray[Any]],
    features: Collection[str] | None,
) -> Iterator[Fault]:
    path = meta.root / file
    wanted = meta.features if features is None else {*DEFAULT_FEATURES, *features}
    names = [name for name in meta.features if name in wanted and name not in meta.camera_keys]
    table = read_table(path, names)
    counters = {name: column_array(table, name, (1,), path).reshape(-1) for name in DEFAULT_FEATURES}
    episode_rows = EpisodeRows(table, path)
    indices[file] = counters["index"]
    length = int(meta.episodes.length[episodes].sum())
    if table.num_rows != length:
        yield Fault(
            "error" if table.num_rows < length else "warning",
            file,
            f"has {table.num_rows} rows, but the episodes {episodes[0]} to {episodes[-1]} in it have {length} frames. "
            "Restore the file, or keep the episodes that are whole: smolact dataset repair.",
        )
    groups = [(episode, episode_rows.of(episode)) for episode in selected]
    for episode, rows in groups:
        yield from _row_faults(meta, file, episode, {name: value[rows] for name, value in counters.items()})
    if features is None:
        yield from annotation_faults(meta, file, table, groups)
    for name in names:
        feature = meta.features[name]
        if not feature.is_numeric:
            continue
        values = column_array(table, name, feature.shape, path)
        columns.setdefault(name, []).append(values.reshape(-1, *feature.shape))
        valid = np.isfinite(values)
        if values.dtype == np.float64:  # smaller dtypes can't exceed it
            valid &= np.abs(values) <= LARGEST
        if len(selected) < len(episodes):
            valid[~np.isin(counters["episode_index"], selected)] = True
        if not valid.all():
            row = int(np.flatnonzero(~valid.reshape(len(values), -1).all(axis=1))[0])
            yield Fault(
                "error",
                file,
                f"'{name}' is not finite (or beyond {LARGEST:g}) in row {row} (episode {counters['episode_index'][row]}). Delete that episode: "
                f"smolact dataset delete --episodes=[{counters['episode_index'][row]}].",
                name,
            )
    for name in [] if quick else meta.image_keys:
        yield from _image_faults(meta.root, file, name, meta.features[name], table.num_rows)


def _row_faults(
    meta: LeRobotDatasetMetadata, file: str, episode: int, rows: dict[str, NDArray[Any]]
) -> Iterator[Fault]:
    where, length = f"{file}, episode {episode}", int(meta.episodes.length[episode])
    if len(rows["index"]) != length:
        yield Fault(
            "error",
            where,
            f"expected {length} rows, found {len(rows['index'])}. Restore the file, or keep the episodes that are whole: "
            "smolact dataset repair.",
        )
        return
    steps, first = np.arange(length), int(meta.episodes.from_index[episode])
    for name, expected in {"frame_index": steps, "index": steps + first}.items():
        if (rows[name] != expected).any():
            row = int(np.flatnonzero(rows[name] != expected)[0])
            yield Fault(
                "error",
                where,
                f"{name} is {rows[name][row]} in row {row}, expected {expected[row]}. Delete the episode, or restore the file.",
            )
    deviation = np.abs(rows["timestamp"].astype(np.float64) - steps / meta.fps)
    if not (deviation <= np.maximum(TIME_TOLERANCE, 1e-6 * steps / meta.fps)).all():
        row = int(np.nanargmax(deviation)) if np.isfinite(deviation).any() else 0
        yield Fault(
            "error",
            where,
            f"timestamp is {rows['timestamp'][row]:g} in row {row}, expected {row / meta.fps:g} at {meta.fps:g} frames a "
            "second. Delete the episode, or restore the file.",
            feature="timestamp",  # lookups go by frame number
        )
    task_numbers = set(rows["task_index"].tolist())
    if not task_numbers <= meta.tasks.keys():
        yield Fault(
            "error",
            where,
            f"task_index {sorted(task_numbers - meta.tasks.keys())[0]} is no task: there are {len(meta.tasks)}. Restore the tasks.",
        )
    elif {meta.tasks[number] for number in task_numbers} != set(meta.episodes.tasks[episode]):
        yield Fault(
            "warning",
            where,
            f"its frames have the tasks {sorted(meta.tasks[number] for number in task_numbers)}, its metadata "
            f"{sorted(meta.episodes.tasks[episode])}. smolact dataset compact sets that right.",
        )


def _image_faults(root: Path, file: str, name: str, feature: Feature, rows: int) -> Iterator[Fault]:
    height, width = feature.image_shape[1:]
    columns = Columns(root)
    for row in range(rows):
        where = f"{file}, row {row}, '{name}'"
        try:
            (data,) = columns.images(file, name, [row])
            if feature.is_depth:
                check_depth_image(data, feature.image_shape, where)
            else:
                decode_image(data, (height, width), where)
        except DatasetError as error:
            yield Fault("error", f"{file}, row {row}", str(error))


def _layout_faults(file: str, feature: Feature, size: tuple[int, int], pixel_format: str) -> Iterator[Fault]:
    """Check a video's frame size, and a depth camera's bits, against the metadata."""
    height, width = feature.image_shape[1:]
    if size != (height, width):
        yield Fault(
            "error",
            file,
            f"its frames are {size[0]} × {size[1]}, and those of the camera's first video {height} × {width}. Restore the "
            "file, or delete its episodes: smolact dataset delete.",
        )
    stated = feature.info.get("video.pix_fmt")
    if feature.is_depth and isinstance(stated, str) and bits_of(pixel_format) < bits_of(stated):
        yield Fault(
            "error",
            file,
            f"its depth has {bits_of(pixel_format)} bits ({pixel_format}), but {layout.INFO} says {stated}: what made the file "
            "has rounded the depth. Restore the file.",
        )


def video_faults(meta: LeRobotDatasetMetadata, key: str, quick: bool, progress: Progress) -> Iterator[Fault]:
    """Check every video file of camera `key`, and decode it unless `quick`."""
    table, done = meta.episodes, 0
    by_file: dict[str, list[int]] = {}
    for episode, file in enumerate(table.video_path[key]):
        by_file.setdefault(file, []).append(episode)
    for file, episodes in by_file.items():
        try:
            yield from _video_file_faults(meta, key, file, episodes, quick, progress, done)
        except DatasetError as error:
            yield Fault("error", file, str(error))
        done += len(episodes)
        progress(key, done, meta.total_episodes)


def _video_file_faults(
    meta: LeRobotDatasetMetadata,
    key: str,
    file: str,
    episodes: list[int],
    quick: bool,
    progress: Progress,
    done: int,
) -> Iterator[Fault]:
    reader = VideoReader(meta.root / file)
    try:
        first = np.rint(meta.episodes.from_timestamp[key][episodes] * meta.fps).astype(np.int64)
        last = first + meta.episodes.length[episodes]
        stated = np.rint(meta.episodes.to_timestamp[key][episodes] * meta.fps).astype(np.int64)
        for number, begin, end, stop in zip(episodes, first, last, stated, strict=True):
            if end > len(reader) or stop != end:
                yield Fault(
                    "error",
                    f"{file}, episode {number}",
                    f"has {end - begin} rows; expected as many frames, from {begin} to {end}: the metadata says up to {stop}, "
                    f"and the file has {len(reader)}. Keep the episodes that are whole: smolact dataset repair.",
                )
        order = np.argsort(first, kind="stable")
        for before, after in pairwise(order):
            if first[after] < last[before]:
                yield Fault(
                    "error",
                    file,
                    f"the episodes {episodes[before]} and {episodes[after]} share frames: one has the other's video. "
                    "Restore the metadata.",
                )
        unused = len(reader) - int((last - first).sum())
        if unused > 0:
            yield Fault(
                "warning", file, f"has {unused} frames of no episode. smolact dataset compact removes them."
            )
        if quick:
            return
        feature = meta.features[key]
        layouts: set[tuple[int, int, str]] = set()
        for start in range(0, len(reader), DECODE_BATCH):
            seen = min(start + DECODE_BATCH, len(reader))
            layouts |= reader.layouts(np.arange(start, seen))
            progress(key, done + len(episodes) * seen // len(reader), meta.total_episodes)
        for height, width, pixel_format in sorted(layouts):
            yield from _layout_faults(file, feature, (height, width), pixel_format)
    finally:
        reader.close()

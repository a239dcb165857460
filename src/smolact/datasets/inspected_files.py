"""What is wrong with the files of a dataset, beside what its metadata says of them: rows, pictures, videos."""

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

TIME_TOLERANCE = 1e-4  # seconds; LeRobot's, beyond which it does not find a frame
DECODED_AT_ONCE = 32


def data_faults(
    meta: LeRobotDatasetMetadata,
    quick: bool,
    progress: Progress,
    columns: dict[str, list[NDArray[Any]]],
    only: Collection[int] | None = None,
    features: Collection[str] | None = None,
) -> Iterator[Fault]:
    """Look at every data file, or at those of the episodes `only`, and there at all columns, or at the counters and `features`.

    `columns` is filled with what statistics are of.
    """
    done = 0
    by_file: dict[str, list[int]] = {}
    for episode, place in enumerate(meta.episodes.data_path):
        by_file.setdefault(place, []).append(episode)
    indices: dict[str, NDArray[Any]] = {}
    for place, episodes in by_file.items():
        looked_at = episodes if only is None else [episode for episode in episodes if episode in only]
        if not looked_at:
            continue
        try:
            yield from _data_file(meta, place, episodes, looked_at, quick, columns, indices, features)
        except DatasetError as error:
            yield Fault("error", place, str(error))
        done += len(episodes)
        progress("data", done, meta.total_episodes)
    if sum(map(len, indices.values())) == meta.total_frames:
        yield from _order(indices)


def _order(indices: Mapping[str, NDArray[Any]]) -> Iterator[Fault]:
    """Whether the rows of all files, in the order of their names, are in the order of the frames: LeRobot goes by their place."""
    first = 0
    for place, index in sorted(indices.items()):
        wanted = np.arange(first, first + len(index))
        first += len(index)
        if (index != wanted).any():
            row = int(np.flatnonzero(index != wanted)[0])
            yield Fault(
                "warning",
                place,
                f"its rows are in another order than the frames: index is {index[row]} in row {row}, expected {wanted[row]}. They "
                "are read in their right order here; LeRobot, which goes by their place, would mix up episodes. smolact dataset "
                "compact puts them in order.",
            )


def _data_file(
    meta: LeRobotDatasetMetadata,
    place: str,
    episodes: list[int],
    looked_at: list[int],
    quick: bool,
    columns: dict[str, list[NDArray[Any]]],
    indices: dict[str, NDArray[Any]],
    features: Collection[str] | None,
) -> Iterator[Fault]:
    path = meta.root / place
    wanted = meta.features if features is None else {*DEFAULT_FEATURES, *features}
    names = [name for name in meta.features if name in wanted and name not in meta.camera_keys]
    table = read_table(path, names)
    counters = {name: column_array(table, name, (1,), path).reshape(-1) for name in DEFAULT_FEATURES}
    rows_of = EpisodeRows(table, path)
    indices[place] = counters["index"]
    length = int(meta.episodes.length[episodes].sum())
    if table.num_rows != length:
        yield Fault(
            "error" if table.num_rows < length else "warning",
            place,
            f"has {table.num_rows} rows, but the episodes {episodes[0]} to {episodes[-1]} in it have {length} frames. "
            "Restore the file, or keep the episodes that are whole: smolact dataset repair.",
        )
    found = [(episode, rows_of.of(episode)) for episode in looked_at]
    for episode, rows in found:
        yield from _episode(meta, place, episode, {name: value[rows] for name, value in counters.items()})
    if features is None:
        yield from annotation_faults(meta, place, table, found)
    for name in names:
        feature = meta.features[name]
        if not feature.is_numeric:
            continue
        values = column_array(table, name, feature.shape, path)
        columns.setdefault(name, []).append(values.reshape(-1, *feature.shape))
        fine = np.isfinite(values)
        if values.dtype == np.float64:  # smaller kinds do not reach so far
            fine &= np.abs(values) <= LARGEST
        if len(looked_at) < len(episodes):
            fine[~np.isin(counters["episode_index"], looked_at)] = True
        if not fine.all():
            row = int(np.flatnonzero(~fine.reshape(len(values), -1).all(axis=1))[0])
            yield Fault(
                "error",
                place,
                f"'{name}' is not finite (or beyond {LARGEST:g}) in row {row} (episode {counters['episode_index'][row]}). Delete that episode: "
                f"smolact dataset delete --episodes=[{counters['episode_index'][row]}].",
                name,
            )
    for name in [] if quick else meta.image_keys:
        yield from _images(meta.root, place, name, meta.features[name], table.num_rows)


def _episode(
    meta: LeRobotDatasetMetadata, place: str, episode: int, rows: dict[str, NDArray[Any]]
) -> Iterator[Fault]:
    where, length = f"{place}, episode {episode}", int(meta.episodes.length[episode])
    if len(rows["index"]) != length:
        yield Fault(
            "error",
            where,
            f"expected {length} rows, found {len(rows['index'])}. Restore the file, or keep the episodes that are whole: "
            "smolact dataset repair.",
        )
        return
    steps, first = np.arange(length), int(meta.episodes.from_index[episode])
    for name, wanted in {"frame_index": steps, "index": steps + first}.items():
        if (rows[name] != wanted).any():
            row = int(np.flatnonzero(rows[name] != wanted)[0])
            yield Fault(
                "error",
                where,
                f"{name} is {rows[name][row]} in row {row}, expected {wanted[row]}. Delete the episode, or restore the file.",
            )
    late = np.abs(rows["timestamp"].astype(np.float64) - steps / meta.fps)
    if not (late <= np.maximum(TIME_TOLERANCE, 1e-6 * steps / meta.fps)).all():
        row = int(np.nanargmax(late)) if np.isfinite(late).any() else 0
        yield Fault(
            "error",
            where,
            f"timestamp is {rows['timestamp'][row]:g} in row {row}, expected {row / meta.fps:g} at {meta.fps:g} frames a "
            "second. Delete the episode, or restore the file.",
            feature="timestamp",  # by which nothing is found here
        )
    used = set(rows["task_index"].tolist())
    if not used <= meta.tasks.keys():
        yield Fault(
            "error",
            where,
            f"task_index {sorted(used - meta.tasks.keys())[0]} is no task: there are {len(meta.tasks)}. Restore the tasks.",
        )
    elif {meta.tasks[number] for number in used} != set(meta.episodes.tasks[episode]):
        yield Fault(
            "warning",
            where,
            f"its frames have the tasks {sorted(meta.tasks[number] for number in used)}, its metadata "
            f"{sorted(meta.episodes.tasks[episode])}. smolact dataset compact sets that right.",
        )


def _images(root: Path, place: str, name: str, feature: Feature, rows: int) -> Iterator[Fault]:
    height, width = feature.image_shape[1:]
    columns = Columns(root)
    for row in range(rows):
        where = f"{place}, row {row}, '{name}'"
        try:
            (data,) = columns.images(place, name, [row])
            if feature.is_depth:
                check_depth_image(data, feature.image_shape, where)
            else:
                decode_image(data, (height, width), where)
        except DatasetError as error:
            yield Fault("error", f"{place}, row {row}", str(error))


def _layout(place: str, feature: Feature, size: tuple[int, int], pixel_format: str) -> Iterator[Fault]:
    """Whether frames of a video are as large, and of a depth camera as fine, as the metadata says."""
    height, width = feature.image_shape[1:]
    if size != (height, width):
        yield Fault(
            "error",
            place,
            f"its frames are {size[0]} × {size[1]}, and those of the camera's first video {height} × {width}. Restore the "
            "file, or delete its episodes: smolact dataset delete.",
        )
    told = feature.info.get("video.pix_fmt")
    if feature.is_depth and isinstance(told, str) and bits_of(pixel_format) < bits_of(told):
        yield Fault(
            "error",
            place,
            f"its depth has {bits_of(pixel_format)} bits ({pixel_format}), but {layout.INFO} says {told}: what made the file "
            "has rounded the depth. Restore the file.",
        )


def video_faults(meta: LeRobotDatasetMetadata, key: str, quick: bool, progress: Progress) -> Iterator[Fault]:
    """Look at every video file of the camera `key`; decode it unless `quick`."""
    table, done = meta.episodes, 0
    places: dict[str, list[int]] = {}
    for episode, place in enumerate(table.video_path[key]):
        places.setdefault(place, []).append(episode)
    for place, episodes in places.items():
        try:
            yield from _video_file(meta, key, place, episodes, quick, progress, done)
        except DatasetError as error:
            yield Fault("error", place, str(error))
        done += len(episodes)
        progress(key, done, meta.total_episodes)


def _video_file(
    meta: LeRobotDatasetMetadata,
    key: str,
    place: str,
    episodes: list[int],
    quick: bool,
    progress: Progress,
    done: int,
) -> Iterator[Fault]:
    reader = VideoReader(meta.root / place)
    try:
        first = np.rint(meta.episodes.from_timestamp[key][episodes] * meta.fps).astype(np.int64)
        last = first + meta.episodes.length[episodes]
        told = np.rint(meta.episodes.to_timestamp[key][episodes] * meta.fps).astype(np.int64)
        for number, begin, end, stop in zip(episodes, first, last, told, strict=True):
            if end > len(reader) or stop != end:
                yield Fault(
                    "error",
                    f"{place}, episode {number}",
                    f"has {end - begin} rows; expected as many frames, from {begin} to {end}: the metadata says up to {stop}, "
                    f"and the file has {len(reader)}. Keep the episodes that are whole: smolact dataset repair.",
                )
        order = np.argsort(first, kind="stable")
        for before, after in pairwise(order):
            if first[after] < last[before]:
                yield Fault(
                    "error",
                    place,
                    f"the episodes {episodes[before]} and {episodes[after]} share frames: one has the other's video. "
                    "Restore the metadata.",
                )
        unused = len(reader) - int((last - first).sum())
        if unused > 0:
            yield Fault(
                "warning", place, f"has {unused} frames of no episode. smolact dataset compact removes them."
            )
        if quick:
            return
        feature = meta.features[key]
        layouts: set[tuple[int, int, str]] = set()
        for start in range(0, len(reader), DECODED_AT_ONCE):
            seen = min(start + DECODED_AT_ONCE, len(reader))
            layouts |= reader.layouts(np.arange(start, seen))
            progress(key, done + len(episodes) * seen // len(reader), meta.total_episodes)
        for found_height, found_width, pixel_format in sorted(layouts):
            yield from _layout(place, feature, (found_height, found_width), pixel_format)
    finally:
        reader.close()

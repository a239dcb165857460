"""The state of a dataset: what its files hold of each episode, and the faults in them with the episodes that they affect.

A check lists the faults, and a repair keeps the episodes that no error affects. A file is read when its faults are asked for.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smolact.datasets import format as layout
from smolact.datasets.annotations import annotation_faults
from smolact.datasets.cameras import Columns, check_depth_image, decode_image
from smolact.datasets.depth import bit_depth
from smolact.datasets.episodes import Episode
from smolact.datasets.faults import Fault, Progress
from smolact.datasets.format import DEFAULT_FEATURES, Feature
from smolact.datasets.metadata import LeRobotDatasetMetadata
from smolact.datasets.path_checks import check_inside
from smolact.datasets.rows import DataFile, group_by_file, take_rows
from smolact.datasets.stats import LARGEST, usable_values
from smolact.datasets.tables import column_array
from smolact.datasets.video import VideoReader
from smolact.errors import DatasetError

_Span = tuple[int, int, tuple[int, ...]]  # first frame, end, episodes (one, or none)
TIME_TOLERANCE = 1e-4  # seconds; LeRobot's limit for finding a frame
DECODE_BATCH = 32
_MAX_FRAMES = 2**62
_RESTORE = "Restore the file, or keep the episodes that are whole: smolact dataset repair."
_DELETE = "Delete the episode, or restore the file."


class DatasetState:
    """The state of the files of a dataset.

    Args:
        meta: the dataset's metadata.
        episodes: the episodes to inspect, by their number in the data files; those of `meta` when None.
        for_repair: check that each file is inside the folder, read image columns even if they are not decoded, and only decode the
            video frames of the episodes.

    Attributes:
        frame_numbers: data file to its column `index` (rows,), of the files that were read.
        task_numbers: episode to the numbers of its tasks in the data file.
        values: feature to its values (rows, *shape) in each data file; empty for a repair.
    """

    def __init__(
        self,
        meta: LeRobotDatasetMetadata,
        episodes: Iterable[Episode] | None = None,
        *,
        for_repair: bool = False,
    ) -> None:
        self.meta, self.for_repair = meta, for_repair
        self.episodes = list(meta.episodes if episodes is None else episodes)
        self.frame_numbers: dict[str, NDArray[Any]] = {}
        self.task_numbers: dict[int, set[Any]] = {}
        self.values: dict[str, list[NDArray[Any]]] = {}

    def data_faults(
        self,
        quick: bool,
        progress: Progress,
        only: Collection[int] | None = None,
        features: Collection[str] | None = None,
    ) -> Iterator[Fault]:
        """Check every data file, or those of the episodes `only`; of the columns, all or the counters and `features`.

        Images are decoded unless `quick`.
        """
        done = 0
        for file, episodes in group_by_file(self.episodes, lambda episode: episode.data_path).items():
            selected = [episode for episode in episodes if only is None or episode.index in only]
            if not selected:
                continue
            try:
                yield from self._data_file_faults(file, episodes, selected, quick, features)
            except DatasetError as error:
                yield Fault("error", file, str(error), episodes=_numbers(selected))
            done += len(episodes)
            progress("data", done, len(self.episodes))
        if sum(map(len, self.frame_numbers.values())) == sum(episode.length for episode in self.episodes):
            yield from _order_faults(self.frame_numbers)

    def video_faults(self, key: str, quick: bool, progress: Progress) -> Iterator[Fault]:
        """Check every video file of camera `key`, and decode it unless `quick`."""
        done = 0
        for file, episodes in group_by_file(self.episodes, lambda episode: episode.videos[key].path).items():
            try:
                if self.for_repair:
                    check_inside(self.meta.root, file)
                with closing(VideoReader(self.meta.root / file)) as reader:
                    spans = yield from self._span_faults(key, file, episodes, len(reader))
                    if not quick:
                        yield from self._frame_faults(key, reader, file, spans, progress, done, len(episodes))
            except DatasetError as error:
                yield Fault("error", file, str(error), episodes=_numbers(episodes))
            done += len(episodes)
            progress(key, done, len(self.episodes))

    def _data_file_faults(
        self,
        file: str,
        episodes: list[Episode],
        selected: list[Episode],
        quick: bool,
        features: Collection[str] | None,
    ) -> Iterator[Fault]:
        meta = self.meta
        if self.for_repair:
            check_inside(meta.root, file)
        wanted = meta.features if features is None else {*DEFAULT_FEATURES, *features}
        unread = meta.video_keys if self.for_repair else meta.camera_keys
        names = [name for name in meta.features if name in wanted and name not in unread]
        data = DataFile(meta.root, file, names)
        counters = {name: data.column(name, (1,)).reshape(-1) for name in DEFAULT_FEATURES}
        self.frame_numbers[file] = counters["index"]
        length = sum(episode.length for episode in episodes)
        if data.count != length:
            yield Fault(
                "error" if data.count < length else "warning",
                file,
                f"has {data.count} rows, but the episodes {episodes[0].index} to {episodes[-1].index} in it have {length} frames.",
                remedy=_RESTORE,
            )
        groups = [(episode, data.rows_of(episode.index)) for episode in selected]
        for episode, rows in groups:
            yield from self._row_faults(episode, {name: value[rows] for name, value in counters.items()})
        if features is None and not self.for_repair:
            episode_rows = [(episode.index, rows) for episode, rows in groups]
            yield from annotation_faults(meta, file, data.table, episode_rows)
        owners = counters["episode_index"]
        for name in filter(lambda name: meta.features[name].is_numeric, names):
            yield from self._value_faults(data, name, selected, owners, len(selected) < len(episodes))
        for name in [] if quick else meta.image_keys:
            yield from self._image_faults(file, name, owners)

    def _row_faults(self, episode: Episode, rows: Mapping[str, NDArray[Any]]) -> Iterator[Fault]:
        """Check the columns `DEFAULT_FEATURES` in the rows of an episode, sorted by `frame_index`."""
        meta, where, length = self.meta, f"{episode.data_path}, episode {episode.index}", episode.length
        affected = (episode.index,)
        if len(rows["index"]) != length:
            problem = f"expected {length} rows, found {len(rows['index'])}."
            yield Fault("error", where, problem, remedy=_RESTORE, episodes=affected)
            return
        steps = np.arange(length)
        for name, expected in {"frame_index": steps, "index": steps + episode.from_index}.items():
            if (rows[name] != expected).any():
                row = int(np.flatnonzero(rows[name] != expected)[0])
                problem = f"{name} is {rows[name][row]} in row {row}, expected {expected[row]}."
                fault = Fault("error", where, problem, remedy=_DELETE, episodes=affected)
                yield replace(fault, kind="index") if name == "index" else fault
        deviation = np.abs(rows["timestamp"].astype(np.float64) - steps / meta.fps)
        if not (deviation <= np.maximum(TIME_TOLERANCE, 1e-6 * steps / meta.fps)).all():
            row = int(np.nanargmax(deviation)) if np.isfinite(deviation).any() else 0
            yield Fault(
                "error",
                where,
                f"timestamp is {rows['timestamp'][row]:g} in row {row}, expected {row / meta.fps:g} at {meta.fps:g} frames a "
                "second.",
                feature="timestamp",  # lookups go by frame number
                remedy=_DELETE,
                episodes=affected,
            )
        numbers = self.task_numbers[episode.index] = set(rows["task_index"].tolist())
        if not numbers <= meta.tasks.keys():
            unknown = sorted(numbers - meta.tasks.keys())[0]
            problem = f"task_index {unknown} is no task: there are {len(meta.tasks)}."
            yield Fault("error", where, problem, remedy="Restore the tasks.", episodes=affected, kind="task")
        elif {meta.tasks[number] for number in numbers} != set(episode.tasks):
            yield Fault(
                "warning",
                where,
                f"its frames have the tasks {sorted(meta.tasks[number] for number in numbers)}, its metadata "
                f"{sorted(episode.tasks)}.",
                remedy="smolact dataset compact sets that right.",
            )

    def _value_faults(
        self, data: DataFile, name: str, selected: list[Episode], owners: NDArray[Any], partial: bool
    ) -> Iterator[Fault]:
        """Check a numeric column in the rows of the `selected` episodes, of all in the file unless `partial`."""
        shape = self.meta.features[name].shape
        try:
            values = data.column(name, shape)
        except DatasetError as error:
            lost = [episode for episode in selected if not _is_readable(data, name, shape, episode)]
            yield Fault("error", data.name, str(error), episodes=_numbers(lost))
            return
        if not self.for_repair:
            self.values.setdefault(name, []).append(values.reshape(-1, *shape))
        # A crash does not make values too large for statistics.
        valid = np.isfinite(values) if self.for_repair else usable_values(values)
        usable = valid.all(axis=tuple(range(1, valid.ndim)))
        if partial:
            usable |= ~np.isin(owners, _numbers(selected))
        if not usable.all():
            row = int(np.flatnonzero(~usable)[0])
            yield Fault(
                "error",
                data.name,
                f"'{name}' is not finite (or beyond {LARGEST:g}) in row {row} (episode {owners[row]}).",
                feature=name,
                remedy=f"Delete that episode: smolact dataset delete --episodes=[{owners[row]}].",
                episodes=tuple(np.unique(owners[~usable]).tolist()),
            )

    def _image_faults(self, file: str, name: str, owners: NDArray[Any]) -> Iterator[Fault]:
        feature, columns = self.meta.features[name], Columns(self.meta.root)
        for row, owner in enumerate(owners.tolist()):
            where = f"{file}, row {row}, '{name}'"
            try:
                data = columns.image(file, name, row)
                if feature.is_depth:
                    check_depth_image(data, feature.image_shape, where)
                else:
                    decode_image(data, feature.image_shape[1:], where)
            except DatasetError as error:
                yield Fault("error", f"{file}, row {row}", str(error), episodes=(owner,))

    def _span_faults(
        self, key: str, file: str, episodes: list[Episode], frames: int
    ) -> Generator[Fault, None, list[_Span]]:
        """Check the spans of the episodes in a video of so many frames; returns the valid ones, in order."""
        fps, spans, used = self.meta.fps, list[_Span](), 0
        begins = {
            episode.index: frame_number(episode.videos[key].from_timestamp, fps) for episode in episodes
        }
        for episode in sorted(episodes, key=lambda episode: (begins[episode.index], episode.index)):
            begin, length, affected = begins[episode.index], episode.length, (episode.index,)
            end, stated = begin + length, frame_number(episode.videos[key].to_timestamp, fps)
            used += length
            if end > frames or stated != end:
                where = f"{file}, episode {episode.index}"
                problem = (
                    f"has {length} rows; expected as many frames, from {begin} to {end}: the metadata says up to {stated}, and "
                    f"the file has {frames}."
                )
                remedy = "Keep the episodes that are whole: smolact dataset repair."
                yield Fault("error", where, problem, remedy=remedy, episodes=affected)
            elif spans and begin < spans[-1][1]:
                (other,) = spans[-1][2]
                problem = f"the episodes {other} and {episode.index} share frames: one has the other's video."
                yield Fault("error", file, problem, remedy="Restore the metadata.", episodes=affected)
            else:
                spans.append((begin, end, affected))
        if frames > used:
            problem = f"has {frames - used} frames of no episode."
            yield Fault("warning", file, problem, remedy="smolact dataset compact removes them.")
        return spans

    def _frame_faults(
        self,
        key: str,
        reader: VideoReader,
        file: str,
        spans: list[_Span],
        progress: Progress,
        done: int,
        count: int,
    ) -> Iterator[Fault]:
        """Decode a video file of `count` episodes, after files of `done` ones."""
        if not self.for_repair:
            edges = [0, *(edge for begin, end, _ in spans for edge in (begin, end)), len(reader)]
            gaps = zip(edges[::2], edges[1::2], strict=True)
            spans = [*spans, *((first, end, ()) for first, end in gaps if first < end)]
        layouts: dict[tuple[int, int, str], list[int]] = {}
        lost: list[int] = []
        errors: list[DatasetError] = []
        for begin, end, episodes in sorted(spans):
            found: set[tuple[int, int, str]] = set()
            try:
                batches = range(begin - begin % DECODE_BATCH + DECODE_BATCH, end, DECODE_BATCH)
                for start, seen in pairwise([begin, *batches, end]):
                    found |= reader.layouts(np.arange(start, seen))
                    if seen % DECODE_BATCH == 0 or seen == len(reader):
                        progress(key, done + count * seen // len(reader), len(self.episodes))
            except DatasetError as error:
                errors.append(error)
                lost += episodes
            for one in found:
                layouts.setdefault(one, []).extend(episodes)
        if errors:
            yield Fault("error", file, str(errors[0]), episodes=tuple(lost))
        for one, affected in sorted(layouts.items()):
            yield from _layout_faults(file, self.meta.features[key], one, tuple(affected))


def frame_number(seconds: float, fps: float) -> int:
    """The number of the frame at a time; limited, since damaged metadata can have any time."""
    return round(min(seconds * fps, _MAX_FRAMES))


def _numbers(episodes: Iterable[Episode]) -> tuple[int, ...]:
    return tuple(episode.index for episode in episodes)


def _is_readable(data: DataFile, name: str, shape: tuple[int, ...], episode: Episode) -> bool:
    """Whether an episode's rows of a numeric column are valid by themselves."""
    try:
        column_array(
            take_rows(data.table.select([name]), data.rows_of(episode.index)), name, shape, data.file
        )
    except DatasetError:
        return False
    return True


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
                "are read in their right order here; LeRobot, which goes by their place, would mix up episodes.",
                remedy="smolact dataset compact puts them in order.",
            )


def _layout_faults(
    file: str, feature: Feature, found: tuple[int, int, str], episodes: tuple[int, ...]
) -> Iterator[Fault]:
    """Check a video's frame size, and a depth camera's bits, against the metadata."""
    size, pixel_format = found[:2], found[2]
    height, width = feature.image_shape[1:]
    if size != (height, width):
        yield Fault(
            "error",
            file,
            f"its frames are {size[0]} × {size[1]}, and those of the camera's first video {height} × {width}.",
            remedy="Restore the file, or delete its episodes: smolact dataset delete.",
            episodes=episodes,
        )
    stated = feature.info.get("video.pix_fmt")
    if feature.is_depth and isinstance(stated, str) and bit_depth(pixel_format) < bit_depth(stated):
        yield Fault(
            "error",
            file,
            f"its depth has {bit_depth(pixel_format)} bits ({pixel_format}), but {layout.INFO} says {stated}: what made the file "
            "has rounded the depth.",
            remedy="Restore the file.",
            episodes=episodes,
            kind="depth",
        )

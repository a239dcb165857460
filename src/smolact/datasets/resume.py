"""Where a dataset ended, so that a writer can go on: its counts, files, tasks, statistics, and what a dead writer left."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import pyarrow as pa

from smolact.datasets import format as layout
from smolact.datasets import quarantine
from smolact.datasets.comparison import another_robot, differences, told
from smolact.datasets.depth import without
from smolact.datasets.episodes import whole_numbers
from smolact.datasets.format import DEFAULT_FEATURES, Feature
from smolact.datasets.metadata import LeRobotDatasetMetadata
from smolact.datasets.rows import EpisodeRows
from smolact.datasets.sources import table_statistics
from smolact.datasets.stats import LARGEST, ImageStatistics, VectorStatistics, aggregate
from smolact.datasets.tables import column_array, column_values, open_parquet, read_groups, read_table
from smolact.errors import ConfigError, DatasetError, FeatureError, did_you_mean
from smolact.hub import is_snapshot
from smolact.openable import linked_folders
from smolact.types import Statistics

logger = logging.getLogger(__name__)

Running = dict[str, "VectorStatistics | ImageStatistics"]


@dataclass(frozen=True)
class ResumeState:
    """An existing dataset (v3.0), as a writer needs it to go on.

    Attributes:
        meta: what it says of itself.
        tasks: its instructions, by number.
        tasks_ran_ahead: `tasks.parquet` has more than these: a writer died before it could say so in `info.json`.
        statistics_ran_ahead: so does `stats.json`.
        tables: the files of `meta/episodes` that are in use.
        next_file: the number of the first file that is not in use, in data, videos and `meta/episodes` alike.
        chunk_size: files a folder.
        running: statistics that can go on exactly.
        summaries: of cameras whose counts nobody kept: what `stats.json` says.
        frames_schema, episodes_schema: of its files; None if it has none.
    """

    meta: LeRobotDatasetMetadata
    tasks: list[str]
    tasks_ran_ahead: bool
    statistics_ran_ahead: bool
    tables: list[Path]
    next_file: int
    chunk_size: int
    running: Running
    summaries: Statistics
    frames_schema: pa.Schema | None
    episodes_schema: pa.Schema | None


def find_last_episode(root: Path) -> ResumeState:
    """Read the dataset in `root` to where it ends. What a writer that died has left is not changed: see `quarantine_leftovers`.

    Raises:
        NotFoundError: there is no such folder.
        ConfigError: it is of an older version, belongs to the Hub's cache, or has depth cameras.
        DatasetError: it is damaged, or has links to folders.
    """
    meta = LeRobotDatasetMetadata(root)
    if meta.codebase_version != layout.WRITTEN_VERSION:
        raise ConfigError(
            f"{root} is a dataset of version {meta.codebase_version}, and recording goes on only in "
            f"{layout.WRITTEN_VERSION}. Convert it first: smolact dataset convert --help"
        )
    if is_snapshot(root.resolve()):
        raise ConfigError(
            f"{root} is a copy that the Hub's cache keeps, and nothing is recorded into it. Make one of your own: smolact "
            f"dataset compact --dataset.root={root} --output=FOLDER"
        )
    linked = linked_folders(root, ("data", "videos", "meta"))
    if linked:
        raise DatasetError(
            f"{root / linked[0]} is a link to another folder of the dataset: what is recorded could overwrite what is there. Make "
            f"the dataset anew, without links: smolact dataset compact --dataset.root={root}"
        )
    if meta.depth_keys:
        raise ConfigError(
            f"{root} has depth cameras ({', '.join(meta.depth_keys)}), and depth is not recorded here. Record into another "
            f"folder, or go on in a copy without depth. {without(meta, meta.depth_keys)}"
        )
    chunk_size = meta.info.get("chunks_size", layout.FILES_PER_CHUNK)
    if type(chunk_size) is not int or chunk_size < 1:
        raise DatasetError(
            f"{root / layout.INFO}: chunks_size must be a positive integer, found {chunk_size!r}."
        )
    tables = _episode_files(meta)
    total = meta.info.get("total_tasks", len(meta.tasks))
    if type(total) is not int or total < 0:
        raise DatasetError(f"{root / layout.INFO}: total_tasks must be a count, found {total!r:.100}.")
    tasks = [text for index, text in sorted(meta.tasks.items())]
    if sorted(meta.tasks) != list(range(len(tasks))) or len(tasks) < total:
        raise DatasetError(
            f"{root / layout.TASKS} numbers its {len(tasks)} tasks {sorted(meta.tasks)[:8]}…, and {layout.INFO} says {total} of "
            f"them: expected 0, 1, 2, … Mend it first: smolact dataset repair --dataset.root={root}"
        )
    counted = meta.stats.get("index", {}).get("count")
    ahead = bool(meta.total_episodes) and counted is not None and bool((counted > meta.total_frames).all())
    running, summaries = _statistics(meta, tables if ahead else None)
    return ResumeState(
        meta,
        tasks[:total],
        len(tasks) > total,
        ahead,
        tables,
        _next_file(meta, tables, chunk_size),
        chunk_size,
        running,
        summaries,
        open_parquet(root / meta.episodes.data_path[0]).schema_arrow if meta.total_episodes else None,
        open_parquet(tables[-1]).schema_arrow if tables else None,
    )


def quarantine_leftovers(found: ResumeState) -> list[Path]:
    """Move every file that belongs to no episode into a folder of its own beside `data`, and say so; returns their new paths.

    Raises:
        WriteError: the disk refused.
    """
    meta, root, episodes = found.meta, found.meta.root, found.meta.episodes
    used = {root / path for path in episodes.data_path} | set(found.tables)
    used |= {root / path for paths in episodes.video_path.values() for path in paths}
    stray = quarantine.orphaned_files(root, used)
    if not stray:
        return []
    folder = quarantine.next_folder(root)
    moved = quarantine.move(root, stray, folder)
    logger.warning(
        "%s: recording ended before its last episode was whole. What was left of it is now in %s; its %d finished "
        "episodes are all there. Remove that folder when you do not need it.",
        root,
        folder,
        meta.total_episodes,
    )
    return moved


def check_same(
    meta: LeRobotDatasetMetadata,
    fps: float | None,
    features: Mapping[str, Feature] | None,
    robot_type: str | None = None,
) -> None:
    """Whether what is to be recorded fits what is there; of a robot of another name and the same joints there is a warning.

    Raises:
        ConfigError: other frames a second.
        FeatureError: a feature is missing, new, or of another kind, size or order of names; all are listed.
    """
    if fps is not None and fps != meta.fps:
        raise ConfigError(
            f"{meta.root} has {meta.fps:g} frames a second, and {fps:g} are asked for: one dataset has one rate. "
            f"Leave the rate out, ask for {meta.fps:g}, or record into another folder."
        )
    if features is None:
        return
    there = {name: meta.features[name] for name in recorded_features(meta) if name not in DEFAULT_FEATURES}
    wrong = [f"'{name}' is in the dataset and is not recorded now" for name in there if name not in features]
    wrong += [
        f"'{name}' is recorded now and is not in the dataset.{did_you_mean(name, there)}"
        for name in features
        if name not in there
    ]
    for name in there.keys() & features.keys():
        wrong += told(name, differences(there[name], features[name]), "in the dataset", "now")
    if wrong:
        raise FeatureError(
            f"{meta.root} can't be continued with this robot: {'; '.join(sorted(wrong))}. Connect what it was recorded "
            "with, or record into another folder."
        )
    if another_robot(meta.robot_type, robot_type):
        logger.warning(
            "%s was recorded with '%s', and goes on with '%s', whose joints have the same names. Its episodes should mean the same "
            "on both; info.json keeps saying '%s'.",
            meta.root,
            meta.robot_type,
            robot_type,
            meta.robot_type,
        )


def recorded_features(meta: LeRobotDatasetMetadata) -> dict[str, Feature]:
    """The features that a recorder gives values to; annotations are made later, and are empty in what is recorded."""
    return {
        name: feature for name, feature in meta.features.items() if feature.dtype != layout.LANGUAGE_DTYPE
    }


def is_only_begun(folder: Path) -> bool:
    """Whether the folder holds nothing but what a writer left that died before it had made a dataset."""
    entries = list(folder.iterdir())
    return bool(entries) and all(
        quarantine.is_temporary(entry)
        or (
            entry.name == "meta"
            and entry.is_dir()
            and not entry.is_symlink()
            and all(map(quarantine.is_temporary, entry.iterdir()))
        )
        for entry in entries
    )


def _episode_files(meta: LeRobotDatasetMetadata) -> list[Path]:
    """The files of `meta/episodes` that are in use, in order."""
    used, rows = [], 0
    for path in sorted((meta.root / layout.EPISODES_FOLDER).glob("*/*.parquet")):
        if rows == meta.total_episodes:
            break
        if not quarantine.is_temporary(path):
            rows += open_parquet(path).metadata.num_rows
            used.append(path)
    if rows > meta.total_episodes:
        raise DatasetError(
            f"{used[-1]} has rows of {rows - meta.total_episodes} episodes more than {meta.root / layout.INFO} counts. "
            f"Mend the dataset first: smolact dataset repair --dataset.root={meta.root}"
        )
    return used


def _next_file(meta: LeRobotDatasetMetadata, tables: list[Path], chunk_size: int) -> int:
    prefixes = ["data", "meta/episodes", *(f"videos/{key}" for key in meta.video_keys)]
    last = len(tables) - 1
    for path in tables:
        chunk, file = (name.rpartition("-")[2] for name in (path.parent.name, path.stem))
        if not (chunk.isdecimal() and file.isdecimal()):
            raise DatasetError(
                f"{path}: expected a name like {layout.EPISODES_PATH}. Fetch the dataset again."
            )
        last = max(last, int(chunk) * chunk_size + int(file))
        opened = open_parquet(path)
        pairs = [(f"{prefix}/chunk_index", f"{prefix}/file_index") for prefix in prefixes]
        there = [pair for pair in pairs if set(pair) <= set(opened.schema_arrow.names)]
        table = read_groups(opened, path, [name for pair in there for name in pair])
        for pair in there:
            chunks, files = (whole_numbers(column_values(table, name, path), path, name) for name in pair)
            last = max([last, *(chunks * chunk_size + files).tolist()])
    return last + 1


def _statistics(meta: LeRobotDatasetMetadata, tables: list[Path] | None) -> tuple[Running, Statistics]:
    """Statistics that go on: numbers are read again; images by their counts, or else by what `stats.json` says.

    Where that counts frames of an episode that is not there, what `tables` say of each episode is put together instead.
    """
    vectors = {
        name: VectorStatistics(feature.shape) for name, feature in meta.features.items() if feature.is_numeric
    }
    _read_vectors(meta, vectors)
    running: Running = dict(vectors)
    summaries: Statistics = {}
    if meta.total_episodes:
        counts, together = _image_counts(meta), meta.stats
        if tables is not None:
            rows = [row for path in tables for row in table_statistics(read_table(path), path)]
            together = {**meta.stats, **aggregate(rows[: meta.total_episodes])}
        for name in meta.camera_keys:
            if name in counts:
                running[name] = counts[name]
                continue
            known = together.get(name, {})
            if not known or not all(np.isfinite(value).all() for value in known.values()):
                raise DatasetError(
                    f"{meta.root / layout.STATS} has no (finite) statistics of the camera '{name}', so they can't go on. "
                    "Compute them first: smolact dataset stats --help"
                )
            # Others count a sample of the frames; a frame of theirs weighs as much as one of ours.
            summaries[name] = {**known, "count": np.array([meta.total_frames])}
    return running, summaries


def _read_vectors(meta: LeRobotDatasetMetadata, vectors: Mapping[str, VectorStatistics]) -> None:
    """An episode at a time, as they were written, so that the histograms are those of an uninterrupted writer."""
    place_of, lengths = meta.episodes.data_path, meta.episodes.length
    frames_of: Counter[str] = Counter()
    for place, length in zip(place_of, lengths.tolist(), strict=True):
        frames_of[place] += length
    for relative, episodes in groupby(range(meta.total_episodes), key=place_of.__getitem__):
        path = meta.root / relative
        table = read_table(path, list(vectors))
        there = EpisodeRows(table, path)
        if table.num_rows != frames_of[relative]:
            raise DatasetError(
                f"{path} has {table.num_rows} frames, and its episodes have {frames_of[relative]}. Mend the dataset first: "
                f"smolact dataset repair --dataset.root={meta.root}"
            )
        rows = [there.whole(episode, int(lengths[episode])) for episode in episodes]
        for name, running in vectors.items():
            values = column_array(table, name, meta.features[name].shape, path)
            if not np.isfinite(values).all() or (np.abs(values.astype(np.float64)) > LARGEST).any():
                raise DatasetError(
                    f"{path}: '{name}' is not finite, or beyond {LARGEST:g}. Delete that episode: smolact dataset check "
                    f"--dataset.root={meta.root}"
                )
            for of_episode in rows:
                running.update(values[of_episode])


def _image_counts(meta: LeRobotDatasetMetadata) -> dict[str, ImageStatistics]:
    path = meta.root / layout.IMAGE_COUNTS
    if not path.is_file():
        return {}
    try:
        for state in layout.read_json(path):
            if (state["episodes"], state["frames"]) == (meta.total_episodes, meta.total_frames):
                cameras = state["cameras"].items()
                return {name: ImageStatistics.from_json(value) for name, value in cameras}
    except (TypeError, KeyError, ValueError, AttributeError, OverflowError) as error:
        raise DatasetError(
            f"{path} is damaged ({error}). Remove it: image statistics then go on from {layout.STATS}."
        ) from error
    return {}  # another tool has changed the dataset since

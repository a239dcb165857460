"""The end state of an existing dataset, from which a writer resumes: counts, files, tasks, statistics, and leftover files."""

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
from smolact.datasets.comparison import differences
from smolact.datasets.depth import removal_advice
from smolact.datasets.episodes import files_per_chunk
from smolact.datasets.format import DEFAULT_FEATURES, Feature
from smolact.datasets.metadata import LeRobotDatasetMetadata
from smolact.datasets.rows import DataFile
from smolact.datasets.sources import table_statistics
from smolact.datasets.stats import LARGEST, ImageStatistics, VectorStatistics, aggregate, usable_values
from smolact.datasets.tables import open_parquet, read_table
from smolact.errors import ConfigError, DatasetError, FeatureError, did_you_mean
from smolact.hub import is_snapshot
from smolact.openable import linked_folders
from smolact.types import Statistics

logger = logging.getLogger(__name__)

Running = dict[str, "VectorStatistics | ImageStatistics"]


@dataclass(frozen=True)
class ResumeState:
    """An existing dataset (v3.0) as far as a resuming writer needs it.

    Attributes:
        tasks: its instructions, by number.
        has_extra_tasks: `tasks.parquet` has more tasks than `info.json` counts: a writer died between the two files.
        has_extra_statistics: `stats.json` counts more frames than `info.json`, for the same reason.
        tables: the files of `meta/episodes` that are in use.
        next_file: the first file number that is unused in data, videos and `meta/episodes` alike.
        running: statistics that can be continued exactly.
        summaries: the `stats.json` entries of cameras without stored value counts.
        frames_schema, episodes_schema: schemas of the dataset's files; None if it has none.
    """

    meta: LeRobotDatasetMetadata
    tasks: list[str]
    has_extra_tasks: bool
    has_extra_statistics: bool
    tables: list[Path]
    next_file: int
    chunk_size: int
    running: Running
    summaries: Statistics
    frames_schema: pa.Schema | None
    episodes_schema: pa.Schema | None


def read_resume_state(root: Path) -> ResumeState:
    """Read the end state of the dataset in `root`. Leftover files are not changed: see `quarantine_leftovers`.

    Raises:
        NotFoundError: the folder does not exist.
        ConfigError: the dataset is of an older version, belongs to the Hub's cache, or has depth cameras.
        DatasetError: it is corrupt, or has links to folders.
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
            f"folder, or go on in a copy without depth. {removal_advice(meta, meta.depth_keys)}"
        )
    chunk_size = files_per_chunk(root, meta.info)
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


def quarantine_leftovers(state: ResumeState) -> list[Path]:
    """Move every orphaned file into a new folder next to `data`, log a warning, and return the new paths.

    Raises:
        WriteError: the disk refused.
    """
    meta, root = state.meta, state.meta.root
    orphaned = quarantine.orphaned_files(root, meta.episodes, state.tables)
    if not orphaned:
        return []
    folder = quarantine.next_folder(root)
    moved = quarantine.move(root, orphaned, folder)
    logger.warning(
        "%s: recording ended before its last episode was whole. What was left of it is now in %s; its %d finished "
        "episodes are all there. Remove that folder when you do not need it.",
        root,
        folder,
        meta.total_episodes,
    )
    return moved


def check_compatible(
    meta: LeRobotDatasetMetadata,
    fps: float | None,
    features: Mapping[str, Feature] | None,
    robot_type: str | None = None,
) -> None:
    """Raise unless the new recording fits the dataset. A robot of another name with the same joints only logs a warning.

    Raises:
        ConfigError: the frame rate differs.
        FeatureError: a feature is missing, new, or of another type, size or order of names; all are listed.
    """
    if fps is not None and fps != meta.fps:
        raise ConfigError(
            f"{meta.root} has {meta.fps:g} frames a second, and {fps:g} are asked for: one dataset has one rate. "
            f"Leave the rate out, ask for {meta.fps:g}, or record into another folder."
        )
    if features is None:
        return
    old = {name: meta.features[name] for name in recorded_features(meta) if name not in DEFAULT_FEATURES}
    wrong = [f"'{name}' is in the dataset and is not recorded now" for name in old if name not in features]
    wrong += [
        f"'{name}' is recorded now and is not in the dataset.{did_you_mean(name, old)}"
        for name in features
        if name not in old
    ]
    for name in old.keys() & features.keys():
        wrong += differences(name, old[name], features[name], ("in the dataset", "now"))
    if wrong:
        raise FeatureError(
            f"{meta.root} can't be continued with this robot: {'; '.join(sorted(wrong))}. Connect what it was recorded "
            "with, or record into another folder."
        )
    if meta.robot_type and robot_type and meta.robot_type != robot_type:
        logger.warning(
            "%s was recorded with '%s', and goes on with '%s', whose joints have the same names. Its episodes should mean the same "
            "on both; info.json keeps saying '%s'.",
            meta.root,
            meta.robot_type,
            robot_type,
            meta.robot_type,
        )


def recorded_features(meta: LeRobotDatasetMetadata) -> dict[str, Feature]:
    """The features that a recorder provides. Annotations are added later and are empty in recordings."""
    return {
        name: feature for name, feature in meta.features.items() if feature.dtype != layout.LANGUAGE_DTYPE
    }


def _episode_files(meta: LeRobotDatasetMetadata) -> list[Path]:
    """The files of `meta/episodes` that are in use, in order."""
    used, rows = [], 0
    for path, count in meta.episodes.tables.items():
        if rows == meta.total_episodes:
            break
        rows += count
        used.append(path)
    if rows > meta.total_episodes:
        raise DatasetError(
            f"{used[-1]} has rows of {rows - meta.total_episodes} episodes more than {meta.root / layout.INFO} counts. "
            f"Mend the dataset first: smolact dataset repair --dataset.root={meta.root}"
        )
    return used


def _next_file(meta: LeRobotDatasetMetadata, tables: list[Path], chunk_size: int) -> int:
    numbers = [len(tables) - 1, *(chunk * chunk_size + file for chunk, file in meta.episodes.file_indices)]
    for path in tables:
        chunk, file = (name.rpartition("-")[2] for name in (path.parent.name, path.stem))
        if not (chunk.isdecimal() and file.isdecimal()):
            raise DatasetError(
                f"{path}: expected a name like {layout.EPISODES_PATH}. Fetch the dataset again."
            )
        numbers.append(int(chunk) * chunk_size + int(file))
    return max(numbers) + 1


def _statistics(meta: LeRobotDatasetMetadata, tables: list[Path] | None) -> tuple[Running, Statistics]:
    """Statistics to continue: vectors are read again; images use their stored counts, or else `stats.json`.

    If `tables` is given, `stats.json` counts unpublished frames, and the per-episode statistics in `tables` replace it.
    """
    vectors = {
        name: VectorStatistics(feature.shape) for name, feature in meta.features.items() if feature.is_numeric
    }
    _read_vectors(meta, vectors)
    running: Running = dict(vectors)
    summaries: Statistics = {}
    if meta.total_episodes:
        counts, known = _image_counts(meta), meta.stats
        if tables is not None:
            rows = [row for path in tables for row in table_statistics(read_table(path), path)]
            known = {**meta.stats, **aggregate(rows[: meta.total_episodes])}
        for name in meta.camera_keys:
            if name in counts:
                running[name] = counts[name]
                continue
            camera = known.get(name, {})
            if not camera or not all(np.isfinite(value).all() for value in camera.values()):
                raise DatasetError(
                    f"{meta.root / layout.STATS} has no (finite) statistics of the camera '{name}', so they can't go on. "
                    "Compute them first: smolact dataset stats --help"
                )
            # Other tools count a sample of the frames; weight their statistics by all frames.
            summaries[name] = {**camera, "count": np.array([meta.total_frames])}
    return running, summaries


def _read_vectors(meta: LeRobotDatasetMetadata, vectors: Mapping[str, VectorStatistics]) -> None:
    """Update `vectors` one episode at a time, so that the histograms equal those of an uninterrupted writer."""
    paths, lengths = meta.episodes.data_path, meta.episodes.length
    frames_of: Counter[str] = Counter()
    for path_in_dataset, length in zip(paths, lengths.tolist(), strict=True):
        frames_of[path_in_dataset] += length
    for relative, episodes in groupby(range(meta.total_episodes), key=paths.__getitem__):
        data = DataFile(meta.root, relative, list(vectors))
        if data.count != frames_of[relative]:
            raise DatasetError(
                f"{data.file} has {data.count} frames, and its episodes have {frames_of[relative]}. Mend the dataset first: "
                f"smolact dataset repair --dataset.root={meta.root}"
            )
        rows = [data.complete_rows(episode, int(lengths[episode])) for episode in episodes]
        for name, running in vectors.items():
            values = data.column(name, meta.features[name].shape)
            if not usable_values(values).all():
                raise DatasetError(
                    f"{data.file}: '{name}' is not finite, or beyond {LARGEST:g}. Delete that episode: smolact dataset check "
                    f"--dataset.root={meta.root}"
                )
            for indices in rows:
                running.update(values[indices])


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
    return {}  # another tool has changed the dataset

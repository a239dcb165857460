"""Check everything in a dataset that training relies on, file by file."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from smolact.datasets import format as layout
from smolact.datasets import quarantine
from smolact.datasets.episodes import episode_tables
from smolact.datasets.faults import Fault, Progress, no_progress
from smolact.datasets.format import DEFAULT_FEATURES
from smolact.datasets.lock import ReadLock
from smolact.datasets.metadata import LeRobotDatasetMetadata
from smolact.datasets.path_checks import unsafe_paths
from smolact.datasets.state import DatasetState
from smolact.datasets.tables import column_array, read_table
from smolact.errors import DatasetError

_UNFINISHED = "a writer died, or is at work now. Go on where it ended (smolact record --resume=true), or keep what is whole: smolact dataset repair."


def check_dataset(root: str | Path, quick: bool = False, progress: Progress = no_progress) -> list[Fault]:
    """The faults of the dataset in folder `root`, of any version; `quick` decodes no images.

    Raises:
        NotFoundError: there is no such folder.
        DatasetError: an edit is about to replace the dataset.
    """
    root = Path(root)
    # With unsafe paths, nothing is opened.
    if root.is_dir() and (faults := list(unsafe_paths(root))):
        return faults
    with ReadLock(root):
        return _faults(root, quick, progress)


def _faults(root: Path, quick: bool, progress: Progress) -> list[Fault]:
    try:
        meta = LeRobotDatasetMetadata(root)
        faults = list(_metadata_faults(meta))
    except DatasetError as error:
        return [Fault("error", "meta", str(error))]
    faults += _orphaned_file_faults(meta)
    state = DatasetState(meta)
    faults += state.data_faults(quick, progress)
    for key in meta.video_keys:
        faults += state.video_faults(key, quick, progress)
    has_errors = any(fault.severity == "error" for fault in faults)
    return faults + list(_statistics_faults(meta, {} if has_errors else state.values))


def training_errors(
    meta: LeRobotDatasetMetadata, episodes: Collection[int], features: Collection[str]
) -> list[Fault]:
    """The errors of `check_dataset` that a training would meet, without checking images.

    Args:
        episodes: the training episodes; only if these are all, values are compared with statistics.
        features: the features whose values and statistics are used.
    """
    state = DatasetState(meta)
    faults = [*_metadata_faults(meta), *state.data_faults(True, no_progress, episodes, features)]
    has_errors = any(fault.severity == "error" for fault in faults)
    known = {name: parts for name, parts in state.values.items() if name in features}
    is_complete = len(set(episodes)) == meta.total_episodes and not has_errors
    faults += _statistics_faults(meta, known if is_complete else {})
    return [
        fault
        for fault in faults
        if fault.severity == "error" and (fault.feature is None or fault.feature in features)
    ]


def _metadata_faults(meta: LeRobotDatasetMetadata) -> Iterator[Fault]:
    numbers, texts = sorted(meta.tasks), list(meta.tasks.values())
    file = layout.TASKS if meta.codebase_version == "v3.0" else layout.TASKS_V2
    fix = "Make the dataset anew: smolact dataset compact."
    if numbers != list(range(len(numbers))):
        yield Fault("error", file, f"numbers its tasks {numbers[:10]}, expected 0, 1, 2, …. {fix}")
    if len(set(texts)) < len(texts):
        yield Fault("warning", file, "has a task twice. Run smolact dataset rename-task, which joins them.")
    for number, text in meta.tasks.items():
        if not text.strip():
            yield Fault(
                "error", file, f"task {number} is empty. Give it words with smolact dataset rename-task."
            )
    total = meta.info.get("total_tasks", len(texts))
    if total != len(texts):
        fix = _UNFINISHED if type(total) is int and total < len(texts) and meta.episodes.frames_ahead else fix
        yield Fault("warning", layout.INFO, f"says {total} tasks, but {file} lists {len(texts)}. {fix}")
    unknown = {task for tasks in meta.episodes.tasks for task in tasks} - set(texts)
    if unknown:
        yield Fault("error", file, f"lacks the task {sorted(unknown)[0]!r} that an episode names. {fix}")
    if not meta.total_episodes:
        yield Fault("warning", layout.INFO, "there are no episodes yet. Record some.")
    for name, feature in meta.features.items():
        if not feature.is_known and feature.dtype != layout.LANGUAGE_DTYPE:
            yield Fault(
                "warning", layout.INFO, f"feature '{name}' has the dtype '{feature.dtype}', not known here."
            )
    for name in meta.video_keys:
        stored, size = meta.stated_size(name), meta.features[name].image_shape[1:]
        if stored != size:
            yield Fault(
                "warning",
                layout.INFO,
                f"says that '{name}' is {stored[0]} × {stored[1]} (height × width), but its video is {size[0]} × {size[1]}, which is "
                "used. smolact dataset compact writes it there.",
            )
    if meta.codebase_version == "v3.0":
        yield from _frame_range_faults(meta)


def _frame_range_faults(meta: LeRobotDatasetMetadata) -> Iterator[Fault]:
    """Compare the frame numbers in `meta/episodes` with the episode lengths."""
    number = 0
    for path in episode_tables(meta.root):
        if number >= meta.total_episodes:
            return
        file = path.relative_to(meta.root).as_posix()
        names = ["dataset_from_index", "dataset_to_index"]
        rows = read_table(path, names)
        first, last = (column_array(rows, name, (1,), path).reshape(-1) for name in names)
        end = min(number + len(first), meta.total_episodes)
        expected = (meta.episodes.from_index[number:end], meta.episodes.to_index[number:end])
        wrong = np.flatnonzero((first[: end - number] != expected[0]) | (last[: end - number] != expected[1]))
        for row in wrong[:1]:
            yield Fault(
                "error",
                file,
                f"says that episode {number + row} has the frames {first[row]} to {last[row]}, but the lengths give "
                f"{expected[0][row]} to {expected[1][row]}. smolact dataset compact sets that right.",
            )
        if number + len(first) > meta.total_episodes:
            yield Fault(
                "warning",
                file,
                f"has {number + len(first) - meta.total_episodes} episodes more than {layout.INFO} counts: a writer died. "
                "smolact dataset repair keeps those that are whole; smolact dataset compact leaves them out.",
            )
        number += len(first)


def _orphaned_file_faults(meta: LeRobotDatasetMetadata) -> Iterator[Fault]:
    for path in quarantine.orphaned_files(meta.root, meta.episodes, episode_tables(meta.root)):
        message = "belongs to no episode: a writer died. smolact dataset repair puts it aside, compact leaves it out."
        if path.suffix not in (".parquet", ".mp4"):
            message = "is what an interrupted write left. Remove it when nothing writes there."
        yield Fault("warning", path.relative_to(meta.root).as_posix(), message)


def _statistics_faults(
    meta: LeRobotDatasetMetadata, columns: dict[str, list[NDArray[Any]]]
) -> Iterator[Fault]:
    if not meta.total_episodes:
        return
    ahead = meta.episodes.frames_ahead
    count = meta.stats.get("index", {}).get("count")
    if ahead and count is not None and (count == meta.total_frames + ahead).all():
        yield Fault(
            "warning",
            layout.STATS,
            f"counts {ahead} frames that {layout.INFO} does not count yet: {_UNFINISHED}",
        )
        return
    file = layout.STATS if meta.codebase_version != "v2.1" else layout.EPISODES_STATS_V21
    fix = "Compute them again: smolact dataset stats."
    for name, feature in meta.features.items():
        if not (feature.is_image or feature.is_numeric):
            continue
        stats = meta.stats.get(name, {})
        if feature.is_depth and not stats:
            continue  # smolact does not read depth
        missing = [statistic for statistic in ("min", "max", "mean", "std") if statistic not in stats]
        if missing:
            severity: Literal["error", "warning"] = "warning" if name in DEFAULT_FEATURES else "error"
            yield Fault(severity, file, f"has no {', '.join(missing)} of '{name}'. {fix}", name)
            continue
        shape = (feature.image_shape[0], 1, 1) if feature.is_image else (feature.shape or (1,))
        wrong = [statistic for statistic in missing or stats if not np.isfinite(stats[statistic]).all()]
        wrong += [s for s in ("min", "max", "mean", "std") if stats[s].shape != shape and s not in wrong]
        if wrong:
            yield Fault(
                "error",
                file,
                f"'{name}' has {wrong[0]} {stats[wrong[0]].tolist()!r:.80}, expected finite numbers of the shape {shape}. "
                f"{fix}",
                name,
            )
            continue
        slack = 1e-4 * np.maximum(stats["max"] - stats["min"], 1e-6) + 1e-6 * np.abs(stats["mean"])
        if (
            (stats["mean"] < stats["min"] - slack)
            | (stats["mean"] > stats["max"] + slack)
            | (stats["std"] < 0)
        ).any():
            yield Fault(
                "error",
                file,
                f"'{name}' has a mean outside its min and max, or a negative std. {fix}",
                name,
            )
        elif name in columns and not _match(stats, np.concatenate(columns[name]).astype(np.float64), slack):
            yield Fault("error", file, f"'{name}' has other values than its statistics say. {fix}", name)


def _match(stats: Any, values: NDArray[np.float64], slack: NDArray[np.float64]) -> bool:
    actual = {"min": values.min(axis=0), "max": values.max(axis=0), "mean": values.mean(axis=0)}
    actual["std"] = values.std(axis=0)
    return all(
        (np.abs(stats[name].reshape(actual[name].shape) - value) <= 10 * slack.reshape(value.shape)).all()
        for name, value in actual.items()
    )

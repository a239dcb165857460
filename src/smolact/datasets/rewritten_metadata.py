"""The `meta/` of an edited dataset, in version v3.0 or v2.1."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from smolact.datasets import format as layout
from smolact.datasets import splits
from smolact.datasets.edit import EditPlan
from smolact.datasets.outcomes import read_log
from smolact.datasets.rewritten_files import Rewriter
from smolact.datasets.stats import statistics_to_json
from smolact.datasets.tables import episodes_schema, tasks_table
from smolact.errors import DatasetError
from smolact.types import Statistics

ROWS_PER_FILE = 10_000
_STATISTICS_V21 = ("min", "max", "mean", "std", "count")
_COUNTS_OF_V2 = ("total_chunks", "total_videos")
_SIZES_OF_V3 = ("data_files_size_in_mb", "video_files_size_in_mb")


def write_metadata(contents: Rewriter) -> None:
    """Write all of `meta/` beside the data and videos that were written.

    For a folder that is not in use yet: durable only after `durable.replacing_folder` has finished it.
    """
    plan, folder = contents.plan, contents.folder
    (folder / "meta").mkdir(parents=True, exist_ok=True)
    features, rows = contents.features, contents.rows
    first, *others = (source.meta.info for source in plan.sources)
    more = {name: value for info in reversed(others) for name, value in info.items()}
    info = {
        **more,
        **first,
        "codebase_version": plan.version,
        "robot_type": plan.robot_type or plan.sources[0].meta.robot_type,
        "total_episodes": len(rows),
        "total_frames": sum(row["length"] for row in rows),
        "total_tasks": len(contents.tasks),
        "chunks_size": layout.FILES_PER_CHUNK,
        "splits": _splits(plan),
        "features": {name: feature.to_json() for name, feature in features.items()},
    }
    has_video = any(feature.dtype == "video" for feature in features.values())
    if plan.version == "v3.0":
        info = {name: value for name, value in info.items() if name not in _COUNTS_OF_V2}
        for name, default in zip(_SIZES_OF_V3, (layout.DATA_FILE_MB, layout.VIDEO_FILE_MB), strict=True):
            info.setdefault(name, default)
        info |= {"data_path": layout.DATA_PATH, "video_path": layout.VIDEO_PATH if has_video else None}
        _write_v3(contents)
    else:
        cameras = sum(feature.dtype == "video" for feature in features.values())
        info = {name: value for name, value in info.items() if name not in _SIZES_OF_V3}
        info |= {"data_path": layout.DATA_PATH_V2, "video_path": layout.VIDEO_PATH_V2 if has_video else None}
        info |= {"total_videos": cameras * len(rows), "total_chunks": -(-len(rows) // layout.FILES_PER_CHUNK)}
        _write_v21(contents)
    (folder / layout.INFO).write_text(_json(info, indent=4), encoding="utf-8")
    contents.subtasks.write(folder)
    _copy_recording_log(plan, folder)
    _copy_image_counts(plan, folder)


def _splits(plan: EditPlan) -> dict[str, str]:
    """The splits of the new dataset: those of a single source, reduced to the remaining episodes; of several sources, all train."""
    if len(plan.sources) > 1:
        return splits.all_in_train(len(plan.episodes))
    (source,) = plan.sources
    return splits.subset(source.meta.info, [source.number_in_file(episode) for _, episode in plan.episodes])


def _copy_recording_log(plan: EditPlan, folder: Path) -> None:
    """Copy each episode's recording log entry under its new number."""
    logs = [{row["episode_index"]: row for row in read_log(source.meta.root)} for source in plan.sources]
    rows = []
    for number, (source_index, episode) in enumerate(plan.episodes):
        row = logs[source_index].get(plan.sources[source_index].number_in_file(episode))
        if row is not None:
            task = row.get("task")
            renamed = {"task": plan.renamed.get(task, task)} if isinstance(task, str) else {}
            rows.append({**row, **renamed, "episode_index": number})
    if rows:
        (folder / layout.RECORDING_LOG).write_text(_json({"episodes": rows}), encoding="utf-8")


def _copy_image_counts(plan: EditPlan, folder: Path) -> None:
    """Copy the value counts of exact image statistics if no frame and no camera changes."""
    source = plan.sources[0]
    path = source.meta.root / layout.IMAGE_COUNTS
    same = plan.keeps_all_episodes and all(
        source.number_in_file(number) == number for _, number in plan.episodes
    )
    if (
        same
        and path.is_file()
        and plan.version == "v3.0"
        and not (plan.cameras or plan.recompute or plan.removed)
    ):
        shutil.copyfile(path, folder / layout.IMAGE_COUNTS)


def _write_v3(contents: Rewriter) -> None:
    folder = contents.folder
    pq.write_table(tasks_table(contents.tasks), folder / layout.TASKS)
    schema, rows, statistics = episodes_schema(contents.features), contents.rows, contents.statistics
    for name in dict.fromkeys(name for row in rows for name in row if name not in schema.names):
        schema = schema.append(pa.field(name, _type_of(name, [row.get(name) for row in rows])))
    for file, begin in enumerate(range(0, len(rows), ROWS_PER_FILE)):
        chunk, number = divmod(file, layout.FILES_PER_CHUNK)
        path = folder / layout.EPISODES_PATH.format(chunk_index=chunk, file_index=number)
        path.parent.mkdir(parents=True, exist_ok=True)
        index = {"meta/episodes/chunk_index": chunk, "meta/episodes/file_index": number}
        part = slice(begin, begin + ROWS_PER_FILE)
        values = [
            {**row, **index, **_flat(stats)} for row, stats in zip(rows[part], statistics[part], strict=True)
        ]
        pq.write_table(pa.Table.from_pylist(values, schema=schema), path, compression="snappy")
    (folder / layout.STATS).write_text(_json(statistics_to_json(contents.totals), indent=4), encoding="utf-8")


def _write_v21(contents: Rewriter) -> None:
    lines: dict[str, list[Any]] = {
        layout.TASKS_V2: [{"task_index": number, "task": task} for number, task in enumerate(contents.tasks)],
        layout.EPISODES_V2: [
            {name: value for name, value in row.items() if not _is_of_v3(name)} for row in contents.rows
        ],
        layout.EPISODES_STATS_V21: [
            {
                "episode_index": row["episode_index"],
                "stats": {
                    feature: {name: values[name] for name in _STATISTICS_V21 if name in values}
                    for feature, values in statistics_to_json(stats).items()
                },
            }
            for row, stats in zip(contents.rows, contents.statistics, strict=True)
        ],
    }
    for name, values in lines.items():
        (contents.folder / name).write_text(
            "".join(_json(value) + "\n" for value in values), encoding="utf-8"
        )


def _is_of_v3(name: str) -> bool:
    """Whether a key of an episode row exists in v3.0 only: file positions and dataset-wide frame indices."""
    return name.startswith(("data/", "videos/")) or name in ("dataset_from_index", "dataset_to_index")


def _type_of(name: str, values: Sequence[Any]) -> pa.DataType:
    """The column type of episode metadata from another tool.

    Raises:
        DatasetError: parquet has no type for the values: mixed types, an empty object, or a number beyond 64 bits.
    """
    try:
        kind = pa.array(values).type
        # Parquet supports fewer types than pyarrow.
        pq.ParquetWriter(pa.BufferOutputStream(), pa.schema([(name, kind)])).close()
    except (pa.ArrowException, OverflowError, TypeError, ValueError) as error:
        raise DatasetError(
            f"What the dataset says of its episodes as {name!r} can't be kept in a column ({error}). Make it values of one kind that "
            f"parquet has, or take it out of {layout.EPISODES_V2}."
        ) from error
    return kind


def _flat(statistics: Statistics) -> dict[str, Any]:
    return {
        f"stats/{feature}/{name}": value
        for feature, values in statistics_to_json(statistics).items()
        for name, value in values.items()
    }


def _json(value: Any, indent: int | None = None) -> str:
    try:
        return json.dumps(value, indent=indent, allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise DatasetError(
            f"The metadata holds a value that JSON does not have, such as a number that is not finite ({error}). If it is in the "
            "statistics, compute them again: smolact dataset stats."
        ) from error

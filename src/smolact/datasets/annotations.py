"""Faults in LeRobot's language columns, and in the subtasks of its older versions.

They are warnings, because training does not read annotations.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from smolact.datasets import format as layout
from smolact.datasets.faults import Fault
from smolact.datasets.metadata import LeRobotDatasetMetadata, read_numbered
from smolact.datasets.tables import column_array, single_array
from smolact.errors import DatasetError

_PERSISTENT = "language_persistent"  # the same records in every frame of an episode
_FIELDS = {"role", "content", "style", "camera", "tool_calls"}


def annotation_faults(
    meta: LeRobotDatasetMetadata, file: str, table: pa.Table, rows: Sequence[tuple[int, NDArray[Any]]]
) -> Iterator[Fault]:
    """Check the annotations in the `table` of a data file, whose `rows` are each episode's number and rows."""
    for name, feature in meta.features.items():
        if feature.dtype == layout.LANGUAGE_DTYPE:
            yield from _language_faults(meta, file, name, single_array(table.column(name)), rows)
    path = meta.root / layout.SUBTASKS
    if layout.SUBTASK_INDEX in meta.features and path.is_file():
        numbers = column_array(table, layout.SUBTASK_INDEX, (1,), meta.root / file)
        try:
            known = read_numbered(path, "subtask")
        except DatasetError as error:
            yield Fault("warning", layout.SUBTASKS, str(error))
            return
        unknown = {number for number in np.unique(numbers).tolist() if number >= 0} - known.keys()
        if unknown:
            message = f"{layout.SUBTASK_INDEX} {min(unknown)} is no subtask: {layout.SUBTASKS} lists {len(known)}. Restore it."
            yield Fault("warning", file, message)


def _language_faults(
    meta: LeRobotDatasetMetadata,
    file: str,
    name: str,
    column: Any,
    rows: Sequence[tuple[int, NDArray[Any]]],
) -> Iterator[Fault]:
    advice = "Annotate the dataset again, or leave the column out: smolact dataset remove-feature"
    kind = column.type
    if pa.types.is_null(kind) or (pa.types.is_list(kind) and pa.types.is_null(kind.value_type)):
        return  # no annotations
    if not (pa.types.is_list(kind) and pa.types.is_struct(kind.value_type)):
        message = f"'{name}' holds {kind}, expected a list of records for each frame. {advice}"
        yield Fault("warning", file, message)
        return
    missing = sorted(
        (_FIELDS | ({"timestamp"} if name == _PERSISTENT else set()))
        - {kind.value_type.field(number).name for number in range(kind.value_type.num_fields)}
    )
    if missing:
        yield Fault("warning", file, f"'{name}' lacks {', '.join(missing)} in its records. {advice}")
        return
    cameras = set(column.flatten().field("camera").to_pylist()) - {None}
    for camera in sorted(cameras - set(meta.camera_keys)):
        message = f"'{name}' is about the camera '{camera}', which the dataset does not have. {advice}"
        yield Fault("warning", file, message)
    for episode, numbers in rows if name == _PERSISTENT else ():
        first = column.slice(int(numbers[0]), 1) if len(numbers) else None
        if first is not None and not all(column.slice(int(row), 1).equals(first) for row in numbers):
            message = f"'{name}' is not the same in every frame of episode {episode}. {advice}"
            yield Fault("warning", file, message)

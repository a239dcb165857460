"""The columns of an edited dataset: known dtypes in the format's types, all others with the types of their files.

Others are LeRobot's annotations (`language_persistent`, `language_events`: lists of records, whose type the file's writer
inferred) and columns that `info.json` does not list. LeRobot's subtasks (before 0.6) are a column `subtask_index`, whose texts are
in `meta/subtasks.parquet`.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from smolact.datasets import format as layout
from smolact.datasets.edit import EditPlan
from smolact.datasets.format import Feature
from smolact.datasets.metadata import read_numbered
from smolact.datasets.tables import frames_schema, open_parquet, single_array, tasks_table
from smolact.errors import DatasetError


def rewritten_schema(plan: EditPlan, features: Mapping[str, Feature]) -> pa.Schema:
    """The schema of the new data files.

    Raises:
        DatasetError: an unknown column has incompatible types, or is missing from all data files.
    """
    others = _other_types(plan, features)
    missing = [name for name, feature in features.items() if not feature.is_known and name not in others]
    if missing:
        raise DatasetError(
            f"{plan.sources[0].meta.root}: no data file has the column '{missing[0]}' that {layout.INFO} lists. Fetch the dataset "
            "again, or leave it out: smolact dataset remove-feature"
        )
    return frames_schema(features, plan.version, others)


def _other_types(plan: EditPlan, features: Mapping[str, Feature]) -> dict[str, pa.DataType]:
    """The types of the columns that are copied unchanged."""
    known = {name for name, feature in features.items() if feature.is_known} | plan.removed
    types: dict[str, pa.DataType] = {}
    used = dict.fromkeys(plan.sources[number].data_file(episode) for number, episode in plan.episodes)
    for path in used:
        for field in open_parquet(path).schema_arrow:
            if field.name not in known:
                types[field.name] = _common_type(types.get(field.name, field.type), field, path)
    return types


def _common_type(kind: pa.DataType, field: pa.Field, path: Path) -> pa.DataType:
    """A type that holds the values of both; files without any values have columns of nulls or empty lists."""
    if kind == field.type:
        return kind
    schemas = [pa.schema([(field.name, item)]) for item in (kind, field.type)]
    try:
        return pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    except pa.ArrowException as error:
        raise DatasetError(
            f"{path}: the column '{field.name}' holds {field.type}, and {kind} in another file: one file can't hold both. Leave "
            "it out with smolact dataset remove-feature, or write it anew with the tool that made it."
        ) from error


def rewritten_column(table: pa.Table, field: pa.Field, features: Mapping[str, Feature], path: Path) -> Any:
    """The column of `field` from a source's rows `table`, cast to the field's type.

    Raises:
        DatasetError: the column is missing though `info.json` lists it, or has another type.
    """
    if field.name not in table.column_names:
        if field.name in features:
            raise DatasetError(f"{path} has no column '{field.name}'. Fetch the dataset again.")
        return pa.nulls(len(table), field.type)
    values = single_array(table.column(field.name))
    if values.type == field.type:
        return values
    if isinstance(values, pa.ExtensionArray):
        values = values.storage
    try:
        if field.name in features and features[field.name].is_known:
            return values.cast(field.type)
        return pa.array(values.to_pylist(), type=field.type)  # old Arrow does not cast lists of records
    except pa.ArrowException as error:
        raise DatasetError(
            f"{path}: '{field.name}' holds {values.type}, expected {field.type} ({error})."
        ) from error


class Subtasks:
    """The subtasks of a new dataset: the unchanged table of its sources, or one table merged from theirs.

    Raises:
        DatasetError: a table is corrupt, or only some of the sources have one.
    """

    def __init__(self, plan: EditPlan) -> None:
        paths = [source.meta.root / layout.SUBTASKS for source in plan.sources]
        existing = [path for path in paths if path.is_file()]
        self._same = existing[0] if existing else None
        self._joined: list[str] = []
        self._numbers: list[dict[int, int]] = []
        if len(plan.sources) == 1 or layout.SUBTASK_INDEX not in plan.features():
            return
        if existing and len(existing) < len(paths):
            missing = next(path for path in paths if path not in existing)
            raise DatasetError(
                f"{missing} is missing, and {existing[0]} is there: what '{layout.SUBTASK_INDEX}' numbers can't be joined. "
                "Restore it, or leave the column out: smolact dataset remove-feature"
            )
        tables = [read_numbered(path, "subtask") for path in existing]
        if any(table != tables[0] for table in tables[1:]):
            ordered = [[table[number] for number in sorted(table)] for table in tables]
            self._joined = list(dict.fromkeys(text for texts in ordered for text in texts))
            index = {text: number for number, text in enumerate(self._joined)}
            self._numbers = [{number: index[text] for number, text in table.items()} for table in tables]

    def renumbered(self, source: int, numbers: NDArray[Any], path: Path) -> NDArray[Any]:
        """A source's subtask indices converted to the new dataset's; negative ones (no subtask) are unchanged.

        Raises:
            DatasetError: an index is not in the source's table.
        """
        if not self._numbers:
            return numbers
        known = self._numbers[source]
        unknown = sorted({number for number in np.unique(numbers).tolist() if number >= 0} - known.keys())
        if unknown:
            raise DatasetError(
                f"{path}: {layout.SUBTASK_INDEX} {unknown[0]} is no subtask: {layout.SUBTASKS} lists {len(known)}. Restore it."
            )
        return np.array([known.get(number, number) for number in numbers.tolist()], dtype=numbers.dtype)

    def write(self, folder: Path) -> None:
        """Write the table, if any, below `folder`."""
        path = folder / layout.SUBTASKS
        if self._joined:
            pq.write_table(tasks_table(self._joined, "subtask"), path)
        elif self._same is not None:
            shutil.copyfile(self._same, path)

"""The columns of a dataset that is made of others: those of known types as the format has them, all others as they lie there.

LeRobot's annotations (`language_persistent`, `language_events`) are such others: lists of records, whose type is what a file's
writer inferred. So are columns that `info.json` does not list.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from smolact.datasets import format as layout
from smolact.datasets.edit import EditPlan
from smolact.datasets.format import Feature
from smolact.datasets.tables import frames_schema, open_parquet
from smolact.errors import DatasetError


def rewritten_schema(plan: EditPlan, features: Mapping[str, Feature]) -> pa.Schema:
    """The schema of the new data files.

    Raises:
        DatasetError: a column that we do not know has types that do not go together.
    """
    others = _other_types(plan, features)
    lost = [name for name, feature in features.items() if not feature.is_known and name not in others]
    if lost:
        raise DatasetError(
            f"{plan.sources[0].meta.root}: no data file has the column '{lost[0]}' that {layout.INFO} lists. Fetch the dataset "
            "again, or leave it out: smolact dataset remove-feature"
        )
    return frames_schema(features, plan.version, others)


def _other_types(plan: EditPlan, features: Mapping[str, Feature]) -> dict[str, pa.DataType]:
    """The types of the columns that are copied as they lie there."""
    known = {name for name, feature in features.items() if feature.is_known} | plan.removed
    found: dict[str, pa.DataType] = {}
    used = dict.fromkeys(
        plan.sources[place].meta.root / plan.sources[place].meta.episodes.data_path[episode]
        for place, episode in plan.episodes
    )
    for path in used:
        for field in open_parquet(path).schema_arrow:
            if field.name not in known:
                found[field.name] = _together(found.get(field.name, field.type), field, path)
    return found


def _together(kind: pa.DataType, field: pa.Field, path: Path) -> pa.DataType:
    """A type that holds the values of both: files in which nothing was ever said have columns of nulls or of empty lists."""
    if kind == field.type:
        return kind
    both = [pa.schema([(field.name, one)]) for one in (kind, field.type)]
    try:
        return pa.unify_schemas(both, promote_options="permissive").field(0).type
    except pa.ArrowException as error:
        raise DatasetError(
            f"{path}: the column '{field.name}' holds {field.type}, and {kind} in another file: one file can't hold both. Leave "
            "it out with smolact dataset remove-feature, or write it anew with the tool that made it."
        ) from error


def rewritten_column(table: pa.Table, field: pa.Field, features: Mapping[str, Feature], path: Path) -> Any:
    """The column of `field` of a source's rows `table`, in its type.

    Raises:
        DatasetError: it is not there though `info.json` lists it, or holds something else.
    """
    if field.name not in table.column_names:
        if field.name in features:
            raise DatasetError(f"{path} has no column '{field.name}'. Fetch the dataset again.")
        return pa.nulls(len(table), field.type)
    values = table.column(field.name).combine_chunks()
    if isinstance(values, pa.ChunkedArray):  # PyArrow before 17
        values = pa.concat_arrays(values.chunks)
    if values.type == field.type:
        return values
    if isinstance(values, pa.ExtensionArray):
        values = values.storage
    try:
        if field.name in features and features[field.name].is_known:
            return values.cast(field.type)
        return pa.array(values.to_pylist(), type=field.type)  # older Arrows do not cast lists of records
    except pa.ArrowException as error:
        raise DatasetError(
            f"{path}: '{field.name}' holds {values.type}, expected {field.type} ({error})."
        ) from error

"""The columns of an edited dataset: known dtypes in the format's types, all others with the types of their files.

Others are LeRobot's annotations (`language_persistent`, `language_events`: lists of records, whose type the file's writer
inferred) and columns that `info.json` does not list.
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
    used = dict.fromkeys(
        plan.sources[number].meta.root / plan.sources[number].meta.episodes.data_path[episode]
        for number, episode in plan.episodes
    )
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
        return pa.array(values.to_pylist(), type=field.type)  # old Arrow does not cast lists of records
    except pa.ArrowException as error:
        raise DatasetError(
            f"{path}: '{field.name}' holds {values.type}, expected {field.type} ({error})."
        ) from error

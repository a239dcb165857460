"""Convert between parquet files and arrays."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from smolact.datasets.format import DEFAULT_FEATURES, NUMBER_DTYPES, STATISTICS, WRITTEN_VERSION, Feature
from smolact.errors import DatasetError
from smolact.openable import check_regular

# pyarrow's errors on a damaged file; ValueError: column names that are not UTF-8.
_READ_ERRORS = (pa.ArrowException, OSError, ValueError)
IMAGE_STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
ARROW_TYPES = {**{name: pa.type_for_alias(name) for name in NUMBER_DTYPES}, "string": pa.string()}

MAX_NAMED = 12
"""The most columns that an error lists."""


def open_parquet(path: Path) -> pq.ParquetFile:
    """Open a parquet file, memory-mapped.

    Raises:
        DatasetError: the file is missing, or not parquet.
    """
    try:
        check_regular(path)
        return pq.ParquetFile(path, memory_map=True)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise DatasetError(f"{path} is missing. Fetch the dataset again, or restore this file.") from error
    except _READ_ERRORS as error:
        raise _damaged(path, error) from error


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a parquet file, or some of its columns.

    Raises:
        DatasetError: the file is missing or damaged, or lacks one of `columns`.
    """
    return read_groups(open_parquet(path), path, columns)


def read_groups(
    file: pq.ParquetFile,
    path: Path,
    columns: Sequence[str] | None = None,
    row_groups: Sequence[int] | None = None,
) -> pa.Table:
    """Like `read_table`, for an open `file`; `path` is for error messages."""
    if columns is not None:
        existing = file.schema_arrow.names
        missing = sorted(set(columns) - set(existing))
        if missing:
            more = f" and {len(existing) - MAX_NAMED} more" if len(existing) > MAX_NAMED else ""
            raise DatasetError(
                f"{path} has no column {', '.join(map(repr, missing))}; it has {', '.join(existing[:MAX_NAMED])}{more}. "
                "The metadata does not fit the file: fetch the dataset again."
            )
    names = None if columns is None else list(columns)
    try:
        if row_groups is None:
            return file.read(columns=names, use_threads=False)
        return file.read_row_groups(list(row_groups), columns=names, use_threads=False)
    except _READ_ERRORS as error:
        raise _damaged(path, error) from error


def column_values(table: pa.Table, name: str, path: Path) -> list[Any]:
    """A column as Python values.

    Raises:
        DatasetError: the column is missing, or its text is not UTF-8.
    """
    column = _column(table, name, path)
    try:
        values: list[Any] = column.to_pylist()
    except _READ_ERRORS as error:
        raise _damaged(path, error) from error
    return values


def _column(table: pa.Table, name: str, path: Path) -> pa.ChunkedArray:
    count = table.column_names.count(name)
    if count != 1:
        raise DatasetError(
            f"{path} has {count or 'no'} columns '{name}', expected one. Fetch the dataset again."
        )
    return table.column(name)


def single_array(column: pa.ChunkedArray) -> Any:
    """A column in one piece; PyArrow before 17 leaves some types in chunks."""
    values = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    return pa.concat_arrays(values.chunks) if isinstance(values, pa.ChunkedArray) else values


def column_array(table: pa.Table, name: str, shape: tuple[int, ...], path: Path) -> NDArray[Any]:
    """A column as an array (rows, *shape), or (rows,) if it holds scalars.

    Raises:
        DatasetError: the column is not numeric, has nulls, or rows of another size than `shape`.
    """
    column = _column(table, name, path)
    prefix = f"{path}: the column '{name}' "
    values = single_array(column)
    if isinstance(values, pa.ExtensionArray):
        values = values.storage
    rows, size = len(values), 1
    while _is_list(values.type):
        flat = values.flatten()
        size = len(flat) // max(rows, 1)
        if (
            values.null_count
            or (pc.list_value_length(values).to_numpy() != len(flat) // max(len(values), 1)).any()
        ):
            raise DatasetError(f"{prefix}has rows of differing size, or empty ones. Fetch the dataset again.")
        values = flat
    if values.null_count:
        raise DatasetError(f"{prefix}has gaps (nulls). Fetch the dataset again.")
    if not (
        pa.types.is_integer(values.type)
        or pa.types.is_floating(values.type)
        or pa.types.is_boolean(values.type)
    ):
        raise DatasetError(f"{prefix}holds {values.type}, not numbers. Fetch the dataset again.")
    expected = int(np.prod(shape))
    if len(values) != rows * expected:
        raise DatasetError(
            f"{prefix}has {size} values a row, but meta/info.json says shape {list(shape)}. Fetch the dataset again."
        )
    array: NDArray[Any] = values.to_numpy(zero_copy_only=False)
    return array if column.type == values.type else array.reshape(rows, *shape)


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def column_type(feature: Feature) -> pa.DataType:
    """The Arrow type of a feature's column: a scalar for shape (1,), the {bytes, path} struct for images."""
    if feature.dtype == "image":
        return IMAGE_STRUCT
    kind = ARROW_TYPES[feature.dtype]
    if feature.shape == (1,):
        return kind
    for size in reversed(feature.shape):
        # As in Hugging Face datasets, only vectors have a fixed size.
        kind = pa.list_(kind, size) if len(feature.shape) == 1 else pa.list_(kind)
    return kind


def to_column(feature: Feature, values: Any) -> pa.Array:
    """An Arrow column of (rows, *shape) values, of encoded images (bytes), or of str."""
    kind = column_type(feature)
    if feature.dtype == "image":
        return pa.array([{"bytes": data, "path": None} for data in values], type=kind)
    if feature.dtype == "string":
        return pa.array(list(values), type=kind)
    array = np.ascontiguousarray(values)
    if feature.shape == (1,):
        return pa.array(array.reshape(-1), type=kind)
    if len(feature.shape) == 1:
        return pa.FixedSizeListArray.from_arrays(pa.array(array.reshape(-1), type=kind.value_type), type=kind)
    return pa.array(array.tolist(), type=kind)


def frames_schema(
    features: Mapping[str, Feature],
    version: str = WRITTEN_VERSION,
    others: Mapping[str, pa.DataType] | None = None,
) -> pa.Schema:
    """The schema of a data file, with Hugging Face's feature metadata, except for `others`. Videos have no column.

    Args:
        features: of known types.
        others: columns of unknown types.
    """
    others = others or {}
    # datasets before 4, which LeRobot used for v2, call it `Sequence`.
    vector = "List" if version == "v3.0" else "Sequence"
    columns = {
        name: feature for name, feature in features.items() if feature.dtype != "video" and name not in others
    }
    hub_features = {name: _hub_feature(feature, vector) for name, feature in columns.items()}
    types = {name: column_type(feature) for name, feature in columns.items()} | dict(others)
    order = dict.fromkeys([*filter(types.__contains__, features), *others])
    schema = pa.schema([(name, types[name]) for name in order])
    return schema.with_metadata({"huggingface": json.dumps({"info": {"features": hub_features}})})


def frames_writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """A writer of a data file or of `meta/episodes`; each table that it gets becomes a row group.

    Only index columns need statistics (lookup by episode); images and unique values gain nothing.
    """
    counters = [name for name in schema.names if name in DEFAULT_FEATURES]
    return pq.ParquetWriter(
        path, schema, compression="snappy", use_dictionary=False, write_statistics=counters
    )


def _hub_feature(feature: Feature, vector: str) -> dict[str, Any]:
    if feature.dtype == "image":
        return {"_type": "Image"}
    value = {"dtype": feature.dtype, "_type": "Value"}
    if feature.shape == (1,):
        return value
    if len(feature.shape) == 1:
        return {"feature": value, "length": feature.shape[0], "_type": vector}
    return {"shape": list(feature.shape), "dtype": feature.dtype, "_type": f"Array{len(feature.shape)}D"}


def episodes_schema(features: Mapping[str, Feature]) -> pa.Schema:
    """The schema of `meta/episodes`, the same in all files."""
    int64, seconds = pa.int64(), pa.float64()
    columns = [("episode_index", int64), ("tasks", pa.list_(pa.string())), ("length", int64)]
    columns += [(name, int64) for name in ("data/chunk_index", "data/file_index", "dataset_from_index")]
    columns.append(("dataset_to_index", int64))
    for name, feature in features.items():
        if feature.dtype == "video":
            columns += [(f"videos/{name}/{index}", int64) for index in ("chunk_index", "file_index")]
            columns += [(f"videos/{name}/{edge}_timestamp", seconds) for edge in ("from", "to")]
    for name, feature in features.items():
        if not (feature.is_image or feature.is_numeric):
            continue
        values = seconds
        for _ in feature.shape:
            values = pa.list_(values)
        for statistic in STATISTICS:
            columns.append((f"stats/{name}/{statistic}", pa.list_(int64) if statistic == "count" else values))
    columns += [("meta/episodes/chunk_index", int64), ("meta/episodes/file_index", int64)]
    return pa.schema(columns)


def tasks_table(tasks: Sequence[str], name: str = "task") -> pa.Table:
    """`meta/tasks.parquet` as pandas writes it, with the index `task` and the column `task_index`."""
    number_name = f"{name}_index"
    text = {"pandas_type": "unicode", "numpy_type": "object"}
    number = {"pandas_type": "int64", "numpy_type": "int64", "metadata": None}
    description = {
        "index_columns": [name],
        "column_indexes": [{"name": None, "field_name": None, **text, "metadata": {"encoding": "UTF-8"}}],
        "columns": [
            {"name": number_name, "field_name": number_name, **number},
            {"name": name, "field_name": name, **text, "metadata": None},
        ],
        "attributes": {},
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "pandas_version": "2.2.0",
    }
    schema = pa.schema([(number_name, pa.int64()), (name, pa.string())])
    table = pa.table({number_name: list(range(len(tasks))), name: list(tasks)}, schema=schema)
    return table.replace_schema_metadata({"pandas": json.dumps(description)})


def _damaged(path: Path, error: Exception) -> DatasetError:
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return DatasetError(
        f"{path} is damaged or not a parquet file ({first:.200}). Fetch it again, or restore it; if a recorder died, "
        "keep the episodes that are whole: smolact dataset repair."
    )

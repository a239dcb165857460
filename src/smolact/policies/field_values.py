"""Values of a configuration's fields: from JSON to the declared type, and back."""

from __future__ import annotations

import builtins
import dataclasses
import typing
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from smolact.decoding import DecodingError, decode, value_node
from smolact.errors import ConfigError
from smolact.types import FeatureType, NormalizationMode, PolicyFeature

MAX_SIZE = 2**16
"""The largest size in a feature's shape: an image's side, or a vector's length."""


def decode_field(hint: Any, value: Any, where: str, flag: str | None = None) -> Any:
    """Convert a JSON value to the type that a field declares.

    Raises:
        ConfigError: it can't be read as that type.
    """
    advice = f" Set {flag}." if flag else ""
    if hint == dict[str, PolicyFeature]:
        mapping = _check_mapping(value or {}, where, advice)
        return {key: _decode_feature(item, f"{where}.{key}", advice) for key, item in mapping.items()}
    if hint == dict[str, NormalizationMode]:
        mapping = _check_mapping(value, where, advice)
        return {
            key: decode_enum(NormalizationMode, item, f"{where}.{key}", advice)
            for key, item in mapping.items()
        }
    if hint is bool and not isinstance(value, bool):
        raise ConfigError(f"{where}: expected true or false, found {value!r:.100}.{advice}")
    if value is None:  # as in the reference, for any type; what needs a value asks for it
        return None
    if hint in (int, float) and isinstance(value, bool):  # as in the reference
        value = hint(value)
    if hint is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, Mapping) and _accepts_mapping(hint):
        return dict(value)
    try:
        return decode(hint, value_node(value))
    except DecodingError as error:
        raise ConfigError(f"{where}: expected {_type_name(hint)}, found {value!r:.100}.{advice}") from error


def check_shape(shape: tuple[int, ...], where: str) -> None:
    """Raise a `ConfigError` unless `shape` has one to four sizes, each from 1 to `MAX_SIZE`."""
    if not 1 <= len(shape) <= 4 or not all(isinstance(size, int) and 1 <= size <= MAX_SIZE for size in shape):
        raise ConfigError(
            f"{where} has the shape {list(shape)!s:.100}: expected one to four sizes, each from 1 to {MAX_SIZE}."
        )


def _accepts_mapping(hint: Any) -> bool:
    return any((typing.get_origin(kind) or kind) in (dict, Any) for kind in (hint, *typing.get_args(hint)))


def _check_mapping(value: Any, where: str, advice: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where}: expected an object {{name: …}}, found {value!r:.100}.{advice}")
    return value


def _decode_feature(value: Any, where: str, advice: str) -> PolicyFeature:
    if isinstance(value, PolicyFeature):
        return value
    try:
        return PolicyFeature(FeatureType(value["type"]), tuple(int(size) for size in value["shape"]))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ConfigError(
            f"{where}: expected {{type, shape}} with a type of {[item.value for item in FeatureType]}, found "
            f"{value!r:.100}.{advice}"
        ) from error


def decode_enum(kind: builtins.type[Enum], value: Any, where: str, advice: str = "") -> Any:
    """Convert a JSON value to a member of `kind`; raise a `ConfigError` if there is none."""
    try:
        return kind(value)
    except ValueError as error:
        raise ConfigError(
            f"{where}: expected one of {[item.value for item in kind]}, found {value!r:.100}.{advice}"
        ) from error


def _type_name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")


def encode(value: Any) -> Any:
    """Convert a field's value to JSON."""
    if isinstance(value, Enum):
        return value.value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: encode(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [encode(item) for item in value]
    return str(value) if isinstance(value, Path) else value

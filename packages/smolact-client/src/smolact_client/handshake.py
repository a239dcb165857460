"""The handshake's messages: offers, schemas and limits as maps, and the validation of received ones."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

from smolact_client.errors import ProtocolError
from smolact_client.schema import Limits, Names, Offer, Schema

T = TypeVar("T")
Fields = dict[str, Any]

MAX_FPS = 1000.0
"""The highest frame rate that is accepted, above that of any robot."""


class Welcome(NamedTuple):
    """The server's first message."""

    schema: Schema
    limits: Limits
    ready: bool


def hello(client: str, offer: Offer | None) -> Fields:
    """Return the fields of a hello: the client's name, and the robot's offer if the server is to check it."""
    return {"client": client, **({} if offer is None else {"offer": _as_map(offer)})}


def read_hello(fields: Mapping[str, Any]) -> Offer | None:
    """Parse the offer of a hello; None if it has none.

    Raises:
        ProtocolError: the offer is invalid.
    """
    offer = fields.get("offer")
    if offer is None:
        return None
    offer = _map(offer, "offer")
    return Offer(
        _map_of(offer, "cameras", _size),
        _map_of(offer, "vectors", _names),
        _names(offer.get("action", []), "action"),
        _map_of(offer, "units", _names),
    )


def welcome(schema: Schema, limits: Limits, ready: bool) -> Fields:
    """Return the fields of a welcome."""
    return {"schema": _as_map(schema), "limits": _as_map(limits), "ready": ready}


def read_welcome(fields: Mapping[str, Any]) -> Welcome:
    """Parse the fields of a welcome.

    Raises:
        ProtocolError: a field is invalid.
    """
    limits = _map(fields.get("limits"), "limits")
    return Welcome(
        read_schema(fields.get("schema")),
        Limits(
            message_bytes=_count(limits.get("message_bytes"), "message_bytes"),
            pixels=_count(limits.get("pixels"), "pixels"),
            task_characters=_count(limits.get("task_characters"), "task_characters"),
            deadline_s=_number(limits.get("deadline_s"), "deadline_s"),
            requests=_count(limits.get("requests", 1), "requests"),
        ),
        fields.get("ready") is True,
    )


def read_schema(value: Any) -> Schema:
    """Parse a schema.

    Raises:
        ProtocolError: `value` is not a map, or a field is invalid.
    """
    schema = _map(value, "schema")
    action_range = schema.get("action_range")
    return Schema(
        policy=_text(schema.get("policy"), "policy"),
        cameras=_map_of(schema, "cameras", _size),
        vectors=_map_of(schema, "vectors", _count),
        action=_count(schema.get("action"), "action"),
        chunk_size=_count(schema.get("chunk_size"), "chunk_size"),
        n_action_steps=_count(schema.get("n_action_steps"), "n_action_steps"),
        names=_map_of(schema, "names", _names),
        action_range=None if action_range is None else _ranges(action_range, "action_range"),
        takes_leftover=schema.get("takes_leftover") is True,
        absent_cameras=_count_or_zero(schema.get("absent_cameras", 0), "absent_cameras"),
        placeholders=None
        if schema.get("placeholders", 0) is None
        else _count_or_zero(schema.get("placeholders", 0), "placeholders"),
        units=_map_of(schema, "units", _names),
        any_names=schema.get("any_names") is True,
        fps=None if schema.get("fps") is None else _rate(schema["fps"], "fps"),
        rename_map=_map_of(schema, "rename_map", _text),
    )


def _rate(value: Any, name: str) -> float:
    rate = _number(value, name)
    if not 0 < rate <= MAX_FPS:
        raise _invalid(value, name, f"a rate above 0, at most {MAX_FPS:g} a second")
    return rate


def _as_map(value: Any) -> Fields:
    return dataclasses.asdict(value)


def _invalid(value: Any, name: str, expected: str) -> ProtocolError:
    return ProtocolError(f"'{name}' of a handshake is {value!r:.60}: expected {expected}.")


def _map(value: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise _invalid(value, name, "a map")
    return value


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise _invalid(value, name, "a list")
    return value


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise _invalid(value, name, "a text")
    return value


def _names(value: Any, name: str) -> Names:
    return tuple(_text(item, name) for item in _list(value, name))


def _count(value: Any, name: str) -> int:
    if type(value) is not int or not 1 <= value < 2**31:
        raise _invalid(value, name, "a positive number")
    return value


def _count_or_zero(value: Any, name: str) -> int:
    return 0 if type(value) is int and value == 0 else _count(value, name)


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
        raise _invalid(value, name, "a number")
    return float(value)


def _size(value: Any, name: str) -> tuple[int, int]:
    height, width = _pair(value, name)
    return _count(height, name), _count(width, name)


def _ranges(value: Any, name: str) -> tuple[tuple[float, float], ...]:
    pairs = [_pair(item, name) for item in _list(value, name)]
    return tuple((_number(low, name), _number(high, name)) for low, high in pairs)


def _pair(value: Any, name: str) -> list[Any]:
    if len(_list(value, name)) != 2:
        raise _invalid(value, name, "two numbers")
    return list(value)


def _map_of(fields: Mapping[str, Any], name: str, read: Callable[[Any, str], T]) -> dict[str, T]:
    return {key: read(value, f"{name}.{key}") for key, value in _map(fields.get(name, {}), name).items()}

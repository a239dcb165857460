"""Decodes YAML nodes to typed values; errors contain the expected type and the found value.

The input is nodes, not values: a node has its line number and its original text (`007`, `1e-4`, `on`), so a setting
means the same on the command line, in YAML and in JSON.
"""

from __future__ import annotations

import dataclasses
import math
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from smolact.errors import did_you_mean

_NULL = "tag:yaml.org,2002:null"
_TEXT = "tag:yaml.org,2002:str"
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}
_INTEGER = re.compile(r"[+-]?[0-9]+(_[0-9]+)*")


class DecodingError(Exception):
    """A node that does not fit the type expected at `path` inside the setting."""

    def __init__(self, expected: str, node: Node, path: str = "", note: str = "") -> None:
        self.expected, self.node, self.path, self.note = expected, node, path, note
        super().__init__(f"expected {expected}, found {describe_node(node)}.{note}")

    def inside(self, step: str) -> DecodingError:
        """Return the same error with `step` prepended to its path."""
        return DecodingError(self.expected, self.node, step + self.path, self.note)


def decode(hint: Any, node: Node) -> Any:
    """Decode `node` to a value of type `hint`.

    Supported: bool, int, float, str, Path, Enum, Literal, None, unions, list, tuple, dict, dataclasses and Any.

    Raises:
        DecodingError: the node does not fit.
    """
    origin = typing.get_origin(hint)
    arguments = typing.get_args(hint)
    if hint is Any:
        return plain_value(node)
    if hint is None or hint is type(None):
        return _null(node)
    if origin in (typing.Union, types.UnionType):
        return _union(arguments, node, describe_type(hint))
    if origin is typing.Literal:
        return _one_of({str(choice): choice for choice in arguments}, node)
    if origin in (list, Sequence) or hint is list:
        return _items((*(arguments or (Any,)), ...), node, describe_type(hint))
    if origin is tuple or hint is tuple:
        return tuple(_items(arguments or (Any, ...), node, describe_type(hint)))
    if origin in (dict, Mapping) or hint is dict:
        key_kind, kind = arguments or (Any, Any)
        return _mapping(key_kind, kind, node, describe_type(hint))
    if isinstance(hint, type) and issubclass(hint, Enum):
        return _one_of({str(member.value): member for member in hint}, node, {m.name: m for m in hint})
    if dataclasses.is_dataclass(hint):
        return _dataclass(typing.cast(type, hint), node)
    if hint in _SCALARS:
        return _SCALARS[hint](node)
    raise TypeError(f"no setting can have the type {hint}")


def text_node(hint: Any, text: str) -> Node:
    """Return the node of `text` from the command line, for a setting of type `hint`.

    Raises:
        DecodingError: the text is not valid YAML.
    """
    plain = ScalarNode(_TEXT, text)
    if _takes_null(hint) and text.strip().lower() in ("null", "none"):
        return ScalarNode(_NULL, text)
    if not _takes_items(hint) or (_takes_text(hint) and text.lstrip()[:1] not in ("[", "{")):
        return plain
    try:
        return yaml.compose(text, Loader=yaml.SafeLoader) or plain
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or str(error)
        raise DecodingError(describe_type(hint), plain, note=f" As YAML: {problem}.") from error


def value_node(value: Any) -> Node:
    """Return the node of a plain Python value: None, bool, int, float, str, Path, Enum, or
    dataclasses, lists and mappings of those."""
    if isinstance(value, Enum):
        value = value.value
    if dataclasses.is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        pairs = [(ScalarNode(_TEXT, str(key)), value_node(item)) for key, item in value.items()]
        return MappingNode("tag:yaml.org,2002:map", pairs)
    if isinstance(value, (list, tuple)):
        return SequenceNode("tag:yaml.org,2002:seq", [value_node(item) for item in value])
    if value is None:
        return ScalarNode(_NULL, "null")
    if isinstance(value, bool):
        return ScalarNode("tag:yaml.org,2002:bool", str(value).lower())
    if isinstance(value, (int, float)):
        tag = "int" if isinstance(value, int) else "float"
        return ScalarNode(f"tag:yaml.org,2002:{tag}", repr(value))
    return ScalarNode(_TEXT, str(value))


class _Loader(yaml.SafeLoader):
    """Loads plain YAML values, and joins the surrogate pairs with which JSON escapes rare characters."""

    def construct_scalar(self, node: ScalarNode | MappingNode) -> Any:
        return _join_surrogates(super().construct_scalar(node))


def plain_value(node: Node) -> Any:
    """Return the plain YAML value of a node: str, int, float, bool, None, list, dict."""
    loader = _Loader("")
    try:
        return loader.construct_object(node, deep=True)
    except (
        yaml.YAMLError,
        ValueError,
    ) as error:  # ValueError: an invalid date, an integer of 5000 digits
        raise DecodingError(
            "plain YAML", node, note=f" {getattr(error, 'problem', None) or error}."
        ) from error
    finally:
        loader.dispose()


def _join_surrogates(text: str) -> str:
    if text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text):
        return text
    try:
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        raise DecodingError(
            "text", ScalarNode(_TEXT, ascii(text)), note=" It holds half a character."
        ) from None


def describe_type(hint: Any) -> str:
    """Describe a type for a user: `an integer`, `a list [a, b, …], each text`, `text or nothing (null)`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        named = [describe_type(kind) for kind in arguments if kind is not type(None)]
        return " or ".join([*named, *(["nothing (null)"] if type(None) in arguments else [])])
    if origin is typing.Literal:
        return "one of " + ", ".join(str(choice) for choice in arguments)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return "one of " + ", ".join(str(member.value) for member in hint)
    if origin in (list, Sequence):
        return f"a list [a, b, …], each {describe_type(arguments[0])}"
    if origin is tuple and arguments and arguments[-1] is not Ellipsis:
        return f"a list of {len(arguments)}: [{', '.join(describe_type(kind) for kind in arguments)}]"
    if origin is tuple:
        return f"a list [a, b, …], each {describe_type(arguments[0])}"
    if origin in (dict, Mapping):
        return "a mapping {name: value, …}, each value " + describe_type(arguments[1])
    names = {
        bool: "true or false",
        int: "an integer",
        float: "a number",
        str: "text",
        Path: "a path",
        list: "a list [a, b, …]",
        tuple: "a list [a, b, …]",
        dict: "a mapping {name: value, …}",
        type(None): "nothing (null)",
        Any: "any value",
    }
    return names.get(hint) or f"the settings of {getattr(hint, '__name__', hint)}, as a mapping"


def describe_node(node: Node) -> str:
    """Describe a node in a few words."""
    if isinstance(node, ScalarNode):
        if node.tag == _NULL:
            return "nothing (null)"
        return f"'{node.value if len(node.value) <= 60 else node.value[:57] + '…'}'"
    if isinstance(node, SequenceNode):
        return f"a list of {len(node.value)}"
    return "a mapping of " + (", ".join(f"'{key.value}'" for key, _ in node.value[:4]) or "nothing")


def _text(node: Node, expected: str) -> str:
    if not isinstance(node, ScalarNode) or node.tag == _NULL:
        raise DecodingError(expected, node)
    return _join_surrogates(str(node.value))


def _boolean(node: Node) -> bool:
    text = _text(node, "true or false").strip().lower()
    if text not in _BOOLEANS:
        raise DecodingError("true or false", node)
    return _BOOLEANS[text]


def _integer(node: Node) -> int:
    text = _text(node, "an integer").strip()
    if not _INTEGER.fullmatch(text) or len(text) > 4000:  # int() itself rejects longer ones
        raise DecodingError("an integer", node)
    return int(text)


def _number(node: Node) -> float:
    try:
        number = float(_text(node, "a number"))
    except ValueError:
        raise DecodingError("a number", node) from None
    if not math.isfinite(number):
        raise DecodingError("a finite number", node)
    return number


_SCALARS: dict[Any, Callable[[Node], Any]] = {
    str: lambda node: _text(node, "text"),
    Path: lambda node: Path(_text(node, "a path")).expanduser(),
    bool: _boolean,
    int: _integer,
    float: _number,
}


def _null(node: Node) -> None:
    if not isinstance(node, ScalarNode) or node.tag != _NULL:
        raise DecodingError("nothing (null)", node)


def _union(kinds: Sequence[Any], node: Node, expected: str) -> Any:
    if type(None) in kinds and isinstance(node, ScalarNode) and node.tag == _NULL:
        return None
    failures = []
    for kind in kinds:
        try:
            return decode(kind, node)
        except DecodingError as error:
            failures.append(error)
    # An error inside the value is more specific than "it is none of these".
    deepest = max(failures, key=lambda error: len(error.path))
    if deepest.path or deepest.note:
        raise deepest
    raise DecodingError(expected, node)


def _one_of(choices: Mapping[str, Any], node: Node, aliases: Mapping[str, Any] | None = None) -> Any:
    expected = "one of " + ", ".join(choices)
    text = _text(node, expected)
    if text in choices:
        return choices[text]
    if aliases and text in aliases:
        return aliases[text]
    raise DecodingError(expected, node, note=did_you_mean(text, choices))


def _items(kinds: tuple[Any, ...], node: Node, expected: str) -> list[Any]:
    """Decode a list: `kinds` are the type of each item, or one type and an ellipsis for all."""
    if isinstance(node, SequenceNode) and kinds[-1] is Ellipsis:
        kinds = kinds[:1] * len(node.value)
    if not isinstance(node, SequenceNode) or len(node.value) != len(kinds):
        raise DecodingError(expected, node)
    pairs = zip(kinds, node.value, strict=True)
    return [_within(f"[{index}]", kind, item) for index, (kind, item) in enumerate(pairs)]


def entries(node: Node, expected: str) -> list[tuple[Node, Node]]:
    """Return the (key, value) nodes of a mapping.

    Raises:
        DecodingError: `node` is not a mapping, or has a non-scalar or duplicate key.
    """
    if not isinstance(node, MappingNode):
        raise DecodingError(expected, node)
    seen: dict[str, Node] = {}
    for key, _ in node.value:
        if not isinstance(key, ScalarNode):
            raise DecodingError("a name as the key", key)
        if key.value in seen:
            first = seen[key.value].start_mark
            where = f" (first on line {first.line + 1})" if first is not None else ""
            raise DecodingError("each key once", key, note=f" It is there twice{where}.")
        seen[key.value] = key
    return list(node.value)


def _mapping(key_kind: Any, kind: Any, node: Node, expected: str) -> dict[Any, Any]:
    return {
        decode(key_kind, key): _within(f".{key.value}", kind, value) for key, value in entries(node, expected)
    }


def _dataclass(cls: type, node: Node) -> Any:
    hints = typing.get_type_hints(cls)
    known = [field.name for field in dataclasses.fields(cls) if field.init]
    values = {}
    for key, value in entries(node, describe_type(cls)):
        if key.value not in known:
            raise DecodingError(
                f"the settings of {cls.__name__}",
                key,
                note=f" It has {', '.join(known)}.{did_you_mean(key.value, known)}",
            )
        values[key.value] = _within(f".{key.value}", hints[key.value], value)
    try:
        return cls(**values)
    except (TypeError, ValueError) as error:
        raise DecodingError(f"the settings of {cls.__name__}", node, note=f" {error}") from error


def _within(step: str, kind: Any, node: Node) -> Any:
    try:
        return decode(kind, node)
    except DecodingError as error:
        raise error.inside(step) from error


def _kinds(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _takes_null(hint: Any) -> bool:
    return hint is Any or type(None) in _kinds(hint)


def _takes_text(hint: Any) -> bool:
    return any(
        kind in (str, Path)
        or typing.get_origin(kind) is typing.Literal
        or (isinstance(kind, type) and issubclass(kind, Enum))
        for kind in _kinds(hint)
    )


def _takes_items(hint: Any) -> bool:
    """Whether the setting's text is parsed as YAML: a list, a mapping, anything."""
    return any(
        (typing.get_origin(kind) or kind) in (Any, list, tuple, dict, Sequence, Mapping)
        or dataclasses.is_dataclass(kind)
        for kind in _kinds(hint)
    )

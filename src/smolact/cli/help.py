"""`smolact COMMAND --help`: every setting of a command, read from its dataclasses. Imports nothing heavy."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import shutil
import textwrap
import types
import typing
from collections.abc import Sequence
from enum import Enum
from typing import Any, NamedTuple

from smolact.flags import flag_value
from smolact.parsing import ConfigSchema, Flag, is_required
from smolact.settings import ALIASES, DOC

FLAGS = "--help=flags"
"""Prints a command's settings as lines of name, values and description, for shell completion."""
HELP = ("--help", "-h", FLAGS)


def asks_for_help(argv: Sequence[str]) -> bool:
    """Whether the arguments contain one of the `HELP` flags."""
    return any(word in HELP for word in argv)


def help_text(cls: type, usage: str, summary: str, argv: Sequence[str] = ()) -> str:
    """Return the help page of a command.

    Args:
        argv: the arguments; `--policy.type=NAME` adds the fields of that policy.
    """
    groups, notes = settings_of(cls, [word for word in argv if word not in HELP])
    if FLAGS in argv:
        all_rows = [row for rows in groups.values() for row in rows]
        return "\n".join(f"{row.name}\t{' '.join(row.choices)}\t{row.doc}" for row in all_rows)
    width = min(shutil.get_terminal_size((100, 24)).columns, 120)
    lines = [summary, "", f"usage: {usage}", ""]
    for title, rows in groups.items():
        lines.append(f"{title or 'settings'}:")
        for row in rows:
            lines.append(f"  --{row.name}={row.default}".ljust(42) + f"  {row.kind}")
            lines += textwrap.wrap(row.doc, width, initial_indent="      ", subsequent_indent="      ")
        lines.append("")
    lines += textwrap.wrap(
        "--config_path=FILE reads settings from YAML or JSON; flags win over it. "
        "--debug shows the traceback of an error. " + " ".join(notes),
        width,
    )
    return "\n".join(lines)


class Row(NamedTuple):
    """A setting on the help page: dotted name, default, type, description, and its values if they can be listed."""

    name: str
    default: str
    kind: str
    doc: str
    choices: tuple[str, ...] = ()


def settings_of(cls: type, argv: Sequence[str] = ()) -> tuple[dict[str, list[Row]], list[str]]:
    """Return a command's settings by section, and notes on sections that depend on a type."""
    schema = ConfigSchema(cls)
    groups: dict[str, list[Flag]] = {"": []}
    for flag in schema.flags.values():
        groups.setdefault(flag.name.rpartition(".")[0], []).append(flag)
    docs = _all_docs(cls)
    notes = []
    for prefix, fields_of in schema.open.items():
        chosen = {field: value for field in ("type", "path") if (value := flag_value(argv, prefix + field))}
        inner = fields_of(chosen)
        if inner is None:
            notes.append(
                f"Further settings of --{prefix}… belong to its type: add --{prefix}type=NAME to list them."
            )
        else:
            groups[f"{prefix.rstrip('.')} ({inner.__name__})"] = list(
                ConfigSchema(inner, prefix).flags.values()
            )
            docs |= _all_docs(inner, prefix)
    rows = {title: [_row(flag, docs) for flag in flags] for title, flags in groups.items() if flags}
    return rows, notes


def _row(flag: Flag, docs: dict[str, str]) -> Row:
    doc = flag.field.metadata.get(DOC) or docs.get(flag.name, "")
    aliases = flag.field.metadata.get(ALIASES, ())
    if aliases:
        doc += f" (Also: {', '.join('--' + alias for alias in aliases)}.)"
    default = "REQUIRED" if is_required(flag.field) else _value_text(_default(flag.field))
    return Row(flag.name, default, _type_name(flag.hint), doc, _choices(flag.hint))


def _choices(hint: Any) -> tuple[str, ...]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return tuple(choice for kind in typing.get_args(hint) for choice in _choices(kind))
    if typing.get_origin(hint) is typing.Literal:
        return tuple(map(str, typing.get_args(hint)))
    if isinstance(hint, type) and issubclass(hint, Enum):
        return tuple(str(member.value) for member in hint)
    return ("true", "false") if hint is bool else ()


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _value_text(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_value_text(item) for item in value) + "]"
    if dataclasses.is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_value_text(item)}" for key, item in value.items()) + "}"
    return str(value)


def _type_name(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " | ".join(_type_name(kind) for kind in arguments)
    if choices := _choices(hint):
        return " | ".join(choices)
    if hint is type(None):
        return "null"
    if dataclasses.is_dataclass(hint):
        return "settings"
    if origin is not None:
        inner = ", ".join("…" if kind is Ellipsis else _type_name(kind) for kind in arguments)
        return f"{origin.__name__}[{inner}]"
    names = {str: "text", int: "integer", float: "number"}
    return names.get(hint) or getattr(hint, "__name__", str(hint)).lower()


def _all_docs(cls: type, prefix: str = "") -> dict[str, str]:
    docs = {prefix + name: doc for base in reversed(cls.__mro__) for name, doc in field_docs(base).items()}
    for name, section in ConfigSchema(cls, prefix).sections.items():
        docs |= {f"{name}.{field}": doc for field, doc in field_docs(section.cls).items()}
    return docs


def field_docs(cls: type) -> dict[str, str]:
    """Return the fields' descriptions in a dataclass's source: the string below, or the comment on or above the line."""
    if not dataclasses.is_dataclass(cls) or all(DOC in field.metadata for field in dataclasses.fields(cls)):
        return {}
    try:
        source = textwrap.dedent(inspect.getsource(cls))
    except (OSError, TypeError):  # no source: a class created at run time
        return {}
    lines = source.splitlines()
    body = typing.cast(ast.ClassDef, ast.parse(source).body[0]).body
    docs = {}
    for index, statement in enumerate(body):
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        following = body[index + 1] if index + 1 < len(body) else None
        if (
            isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
            and isinstance(following.value.value, str)
        ):
            docs[statement.target.id] = " ".join(following.value.value.split())
            continue
        last = (statement.end_lineno or statement.lineno) - 1
        trailing = lines[last][statement.end_col_offset or 0 :].strip() if statement.end_col_offset else ""
        above: list[str] = []
        line = statement.lineno - 2
        while line >= 0 and lines[line].strip().startswith("#"):
            above.insert(0, lines[line].strip().lstrip("# "))
            line -= 1
        doc = trailing.lstrip("# ") if trailing.startswith("#") else " ".join(above)
        if doc:
            docs[statement.target.id] = doc
    return docs

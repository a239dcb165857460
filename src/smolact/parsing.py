"""Parses flags and configuration files to dataclasses, in LeRobot's syntax.

    --policy.type=smolvla --dataset.repo_id=me/data --batch_size=64 --resume --config_path=train.yaml

A dotted name is a field of a nested dataclass; a section may take the fields of a class that another setting names
(`--policy.type` → `SmolVLAConfig`). A file contains the same names, nested or dotted, in YAML or JSON. Flags override
the file; of repeated flags the last wins. Every mistake is a `ConfigError` with its location.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode

from smolact.decoding import (
    DecodingError,
    decode,
    describe_type,
    entries,
    plain_value,
    text_node,
    value_node,
)
from smolact.errors import ConfigError, NotFoundError, did_you_mean, list_siblings
from smolact.settings import ALIASES, INTERNAL, REST, RestClass, Unsupported, flag_name

CONFIG_PATH = "config_path"

Config = TypeVar("Config")


@dataclasses.dataclass(frozen=True)
class ParsedValue:
    """A setting as given: a flag's text (None when bare) or a file's node, and its source."""

    name: str
    value: str | Node | None
    source: str

    @classmethod
    def of(cls, name: str, value: Any, source: str | None = None) -> ParsedValue:
        """Return a setting with a value of Python: None, bool, int, float, str, Path, and lists and mappings of those."""
        return cls(name, value_node(value), source or f"--{name}={value}")

    def node(self, hint: Any) -> Node:
        """Return the value's YAML node, for a setting of type `hint`."""
        if isinstance(self.value, Node):
            return self.value
        if self.value is None and hint is not bool:
            raise ConfigError(
                f"{self.source} needs a value: {describe_type(hint)}. Write {self.source}=VALUE."
            )
        return text_node(hint, "true" if self.value is None else self.value)


@dataclasses.dataclass(frozen=True)
class Flag:
    """A setting: its dotted name, type and dataclass field."""

    name: str
    hint: Any
    field: dataclasses.Field[Any]

    @property
    def is_required(self) -> bool:
        """Whether the field has no default."""
        return self.field.default is dataclasses.MISSING and self.field.default_factory is dataclasses.MISSING


class ConfigSchema:
    """A dataclass's settings: `flags`, nested `sections`, and `open` sections, whose class another setting names."""

    def __init__(self, cls: type, prefix: str = "") -> None:
        self.cls, self.prefix = cls, prefix
        self.flags: dict[str, Flag] = {}
        self.sections: dict[str, ConfigSchema] = {}
        self.aliases: dict[str, str] = {}
        self.open: dict[str, RestClass] = {}
        self.unsupported: dict[str, Unsupported] = {
            prefix + name: refusal for name, refusal in getattr(cls, "UNSUPPORTED", {}).items()
        }
        hints = typing.get_type_hints(cls)
        for field in dataclasses.fields(cls):
            if not field.init or INTERNAL in field.metadata:
                continue
            name = prefix + flag_name(field)
            section = section_class(hints[field.name])
            if REST in field.metadata:
                self.open[prefix] = field.metadata[REST]
            elif section is not None:
                self._add_section(field.name, ConfigSchema(section, name + "."))
            else:
                self.flags[name] = Flag(name, hints[field.name], field)
                self.aliases.update({prefix + alias: name for alias in field.metadata.get(ALIASES, ())})

    def _add_section(self, name: str, inner: ConfigSchema) -> None:
        self.sections[self.prefix + name] = inner
        self.sections.update(inner.sections)
        self.flags.update(inner.flags)
        self.aliases.update(inner.aliases)
        self.open.update(inner.open)
        self.unsupported.update(inner.unsupported)

    def names(self) -> list[str]:
        """Return all setting names, including aliases."""
        return [*self.flags, *self.aliases]


def section_class(hint: Any) -> type | None:
    """Return the dataclass of a section (`T`, or `T | None`); None for a single setting."""
    kinds = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    classes = [kind for kind in kinds if isinstance(kind, type) and kind is not type(None)]
    return classes[0] if len(classes) == 1 and dataclasses.is_dataclass(classes[0]) else None


def parse(cls: type[Config], argv: Sequence[str]) -> Config:
    """Parse `argv`, and the file that it may name, to a `cls`.

    Args:
        cls: a dataclass; nested dataclasses are its sections.
        argv: the arguments after the command.

    Raises:
        ConfigError: a name is unknown, a value has the wrong type, or a setting is missing or refused.
        NotFoundError: the configuration file does not exist.
    """
    path, flags = split_file(argv)
    return build(cls, [*(() if path is None else read_file(path)), *flags])


def split_file(argv: Sequence[str]) -> tuple[Path | None, list[ParsedValue]]:
    """Return the file that `--config_path` names, and the other flags."""
    words = list(read_flags(argv))
    paths = [word.value for word in words if word.name == CONFIG_PATH]
    if not paths:
        return None, words
    if not isinstance(paths[-1], str) or not paths[-1]:
        raise ConfigError("--config_path needs a value: --config_path=FILE.yaml")
    return Path(paths[-1]).expanduser(), [word for word in words if word.name != CONFIG_PATH]


def build(cls: type[Config], given: Iterable[ParsedValue]) -> Config:
    """Build a `cls` of the settings that were given; the last of one name wins.

    Raises:
        ConfigError: as by `parse`.
    """
    schema = ConfigSchema(cls)
    settings, rest = _assign(list(given), schema, schema.names())
    values = _decode_all(settings, schema.flags)
    config: Config = _build(schema, values, _decode_rest(schema, values, rest))
    return config


def flattened(cls: type, given: Iterable[ParsedValue]) -> list[ParsedValue]:
    """Return the settings that were given for a `cls`, each under its own dotted name, also of sections given as one mapping.

    Raises:
        ConfigError: a name is unknown, or a section is no mapping.
    """
    schema = ConfigSchema(cls)
    settings, rest = _assign(list(given), schema, schema.names())
    named = [dataclasses.replace(item, name=name) for name, item in settings.items()]
    return [*named, *(item for items in rest.values() for item in items)]


def read_flags(argv: Sequence[str]) -> Iterator[ParsedValue]:
    """Yield the flags of a command line: `--name=value`, `--name value`, or `--name` alone.

    Raises:
        ConfigError: a word is neither a flag nor a flag's value.
    """
    words = list(argv)
    while words:
        word = words.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or not name:
            hint = (
                f" Did you mean '--{word.lstrip('-')}'?"
                if word.startswith("-")
                else " Settings are --name=value."
            )
            raise ConfigError(f"'{word}' is not understood here.{hint}")
        if equals:
            yield ParsedValue(name, value, _shortened(word))
        elif words and not words[0].startswith("--"):
            value = words.pop(0)
            yield ParsedValue(name, value, _shortened(f"{word}={value}"))
        else:
            yield ParsedValue(name, None, word)


def flag_value(argv: Sequence[str], name: str) -> str | None:
    """Return the text of the last `--name=…` in `argv`; None without the flag or its value."""
    values = [flag.value for flag in read_flags(argv) if flag.name == name]
    return values[-1] if values and isinstance(values[-1], str) else None


def read_file(path: Path) -> Iterator[ParsedValue]:
    """Yield the top-level settings of a YAML or JSON file.

    Raises:
        NotFoundError: the file does not exist.
        ConfigError: it is not valid YAML (JSON), not a mapping, or has a duplicate key.
    """
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "not there"
        raise NotFoundError(f"The configuration file {path} is {kind}. {list_siblings(path.absolute())}")
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".json":
            json.loads(text)
            text = text.replace("\t", " ")  # JSON allows tabs only between tokens, where YAML forbids them
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not text in UTF-8 (byte {error.start}). Save it as UTF-8.") from error
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}, line {error.lineno}: not valid JSON: {error.msg}.") from error
    except RecursionError as error:
        raise ConfigError(f"{path} is nested too deeply to be a configuration.") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        raise ConfigError(
            f"{path}{where}: not valid YAML: {getattr(error, 'problem', None) or error}."
        ) from error
    if node is None:
        return
    yield from _section_values(ParsedValue("", node, str(path)), str(path))


def _section_values(section: ParsedValue, file: str | None) -> Iterator[ParsedValue]:
    """Yield the settings of a section that was given as one mapping."""
    assert isinstance(section.value, Node)
    try:
        pairs = entries(section.value, "a mapping of settings (name: value)")
    except DecodingError as error:
        raise ConfigError(
            _error_message(ParsedValue(section.name, error.node, section.source), error, file)
        ) from error
    prefix = section.name + "." if section.name else ""
    for key, value in pairs:
        source = f"{file}, line {key.start_mark.line + 1}" if file else section.source
        yield ParsedValue(prefix + str(key.value), value, source)


def _assign(
    given: Sequence[ParsedValue], schema: ConfigSchema, known: Sequence[str]
) -> tuple[dict[str, ParsedValue], dict[str, list[ParsedValue]]]:
    """Assign values to settings; return those of open sections, whose class is not resolved yet, separately.

    Raises:
        ConfigError: a name is unknown; the message proposes the nearest of `known`.
    """
    settings: dict[str, ParsedValue] = {}
    rest: dict[str, list[ParsedValue]] = {prefix: [] for prefix in schema.open}
    pending = list(given)
    while pending:
        item = pending.pop(0)
        name = schema.aliases.get(item.name, item.name)
        prefixes = [prefix for prefix in rest if name.startswith(prefix)]
        if name in schema.flags:
            settings[name] = item
        elif name in schema.sections:
            pending[:0] = _open_section(item, schema.sections[name].cls)
        elif name in schema.unsupported:
            _refuse(item, schema.unsupported[name])
        elif prefixes:
            rest[max(prefixes, key=len)].append(item)
        else:
            raise ConfigError(_unknown_name(item, known))
    return settings, rest


def _open_section(section: ParsedValue, cls: type) -> list[ParsedValue]:
    from_flag = not isinstance(section.value, Node)
    try:
        node = section.node(cls)
    except DecodingError as error:
        raise ConfigError(_error_message(section, error)) from error
    if isinstance(node, ScalarNode) and node.value.lower() in ("null", "none", "", "~"):
        return []
    if not isinstance(node, MappingNode):
        expected = f"a mapping of settings, or flags --{section.name}.NAME=VALUE"
        raise ConfigError(_error_message(section, DecodingError(expected, node)))
    file = None if from_flag else section.source.rpartition(", line ")[0]
    return list(_section_values(ParsedValue(section.name, node, section.source), file))


def _decode_all(settings: Mapping[str, ParsedValue], flags: Mapping[str, Flag]) -> dict[str, Any]:
    values = {}
    for name, setting in settings.items():
        flag = flags[name]
        try:
            values[name] = decode(flag.hint, setting.node(flag.hint))
        except DecodingError as error:
            raise ConfigError(_error_message(setting, error)) from error
    return values


def _refuse(item: ParsedValue, refusal: Unsupported) -> None:
    """Raise a `ConfigError` unless an unsupported setting has a harmless value."""
    try:
        value = plain_value(item.node(bool if item.value is None else Any))
    except DecodingError as error:
        raise ConfigError(_error_message(item, error)) from error
    if not refusal.is_harmless(value):
        raise ConfigError(f"{_label(item)} can't be used: {refusal.reason}")


def _decode_rest(
    schema: ConfigSchema,
    values: Mapping[str, Any],
    rest: Mapping[str, Sequence[ParsedValue]],
) -> dict[str, dict[str, Any]]:
    """Decode the settings of each open section, typed by the class that its other settings name."""
    decoded: dict[str, dict[str, Any]] = {}
    for prefix, fields_of in schema.open.items():
        cls = fields_of(
            {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
        )
        if cls is None:
            if rest[prefix]:
                note = f" Further settings of this section need --{prefix}type=NAME."
                raise ConfigError(_unknown_name(rest[prefix][0], schema.names(), note))
            decoded[prefix] = {}
            continue
        inner = ConfigSchema(cls, prefix)
        settings, _ = _assign(rest[prefix], inner, [*inner.names(), *schema.names()])
        decoded[prefix] = _nested(inner, _decode_all(settings, inner.flags))
    return decoded


def _build(schema: ConfigSchema, values: Mapping[str, Any], rest: Mapping[str, Mapping[str, Any]]) -> Any:
    """Build the dataclass of a schema, sections first.

    Raises:
        ConfigError: a required setting is missing, or the class rejects the values.
    """
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(schema.cls):
        name = schema.prefix + flag_name(field)
        if REST in field.metadata:
            fields[field.name] = dict(rest[schema.prefix])
        elif name in values:
            fields[field.name] = values[name]
        elif name in schema.sections:
            is_given = any(key.startswith(name + ".") for key in values)
            is_given = is_given or any(
                content and prefix.startswith(name + ".") for prefix, content in rest.items()
            )
            if is_given or name + "." in rest or field.default is dataclasses.MISSING:
                fields[field.name] = _build(schema.sections[name], values, rest)
        elif name in schema.flags and schema.flags[name].is_required:
            raise ConfigError(
                f"--{name} is required: {describe_type(schema.flags[name].hint)}. Give --{name}=VALUE."
            )
    return schema.cls(**fields)


def _nested(schema: ConfigSchema, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the given fields by name; a section with values becomes an instance of its class."""
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(schema.cls):
        name = schema.prefix + flag_name(field)
        if name in values:
            fields[field.name] = values[name]
        elif name in schema.sections and any(key.startswith(name + ".") for key in values):
            fields[field.name] = _build(schema.sections[name], values, {})
    return fields


def _unknown_name(item: ParsedValue, known: Sequence[str], note: str = "") -> str:
    advice = " Add --help to list every setting."
    if item.source.startswith("--"):
        near = did_you_mean("--" + item.name, ["--" + name for name in known])
        return f"There is no flag --{item.name}.{near}{note}{advice}"
    return f"{item.source}: there is no setting '{item.name}'.{did_you_mean(item.name, known)}{note}{advice}"


def _label(item: ParsedValue) -> str:
    return item.source if item.source.startswith("--") else f"{item.source}: {item.name}"


def _error_message(item: ParsedValue, error: DecodingError, file: str | None = None) -> str:
    """Return the message: location, expected type, found value."""
    mark = error.node.start_mark
    if item.source.startswith("--"):
        at = f" (at {error.path.lstrip('.')})" if error.path else ""
        return f"{item.source}{at}: {error}"
    file = file or item.source.rpartition(", line ")[0] or item.source
    line = f", line {mark.line + 1}" if mark is not None else ""
    name = f"{item.name}{error.path}".lstrip(".")
    return f"{file}{line}: {name + ': ' if name else ''}{error}"


def _shortened(word: str, most: int = 100) -> str:
    return word if len(word) <= most else word[: most - 1] + "…"

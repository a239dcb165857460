"""Builds dataclasses of the settings that were given by flags and files (`smolact.flags`).

A dotted name is a field of a nested dataclass; a section may take the fields of a class that another setting names
(`--policy.type` → `SmolVLAConfig`). A file contains the same names, nested or dotted. Flags override the file; of repeated
flags the last wins. Every mistake is a `ConfigError` with its location.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from yaml.nodes import MappingNode, ScalarNode

from smolact.decoding import DecodingError, decode, describe_type, plain_value
from smolact.errors import ConfigError, SmolactError, did_you_mean
from smolact.flags import ParsedValue, name_sources, read_command_line
from smolact.settings import ALIASES, INTERNAL, REST, WHEN_NEEDED, RestClass, Unsupported, flag_name

Config = TypeVar("Config")


@dataclasses.dataclass(frozen=True)
class Flag:
    """A setting: its dotted name, type and dataclass field."""

    name: str
    hint: Any
    field: dataclasses.Field[Any]


def is_required(field: dataclasses.Field[Any]) -> bool:
    """Whether a field has no default."""
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


class ConfigSchema:
    """A dataclass's settings: `flags`, nested `sections`, and `open` sections, whose class another setting names."""

    def __init__(self, cls: type, prefix: str = "") -> None:
        self.cls, self.prefix = cls, prefix
        self.flags: dict[str, Flag] = {}
        self.sections: dict[str, ConfigSchema] = {}
        self.aliases: dict[str, str] = {}
        self.open: dict[str, RestClass] = {}
        self.when_needed: set[str] = set()
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
                if field.metadata[WHEN_NEEDED]:
                    self.when_needed.add(prefix)
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
        self.when_needed |= inner.when_needed
        self.unsupported.update(inner.unsupported)

    def refusal(self, name: str) -> Unsupported | None:
        """Return the refusal of a setting, or of a section that it is in; None without one."""
        while name and name not in self.unsupported:
            name = name.rpartition(".")[0]
        return self.unsupported.get(name)

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

    Raises:
        ConfigError: a name is unknown, a value has the wrong type, or a setting is missing or refused.
        NotFoundError: the configuration file does not exist.
    """
    return build(cls, read_command_line(argv))


def build(cls: type[Config], given: Iterable[ParsedValue]) -> Config:
    """Build a `cls` of the settings that were given; the last of one name wins.

    Raises:
        ConfigError: as by `parse`.
    """
    schema = ConfigSchema(cls)
    settings, rest = _assign(given, schema, schema.names())
    try:
        values = _decode_all(settings, schema.flags)
        config: Config = _build(schema, values, _decode_rest(schema, values, rest))
    except SmolactError as error:
        name_sources(error, _named(settings, rest))
        raise
    return config


def flattened(cls: type, given: Iterable[ParsedValue]) -> list[ParsedValue]:
    """Return the settings that were given for a `cls`, each under its own dotted name, also of sections given as one mapping.

    Raises:
        ConfigError: a name is unknown, or a section is no mapping.
    """
    schema = ConfigSchema(cls)
    return _named(*_assign(given, schema, schema.names()))


def _named(
    settings: Mapping[str, ParsedValue], rest: Mapping[str, Sequence[ParsedValue]]
) -> list[ParsedValue]:
    named = [dataclasses.replace(item, name=name) for name, item in settings.items()]
    return [*named, *(item for items in rest.values() for item in items)]


def _assign(
    given: Iterable[ParsedValue], schema: ConfigSchema, known: Sequence[str]
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
        elif refusal := schema.refusal(name):
            _refuse(item, refusal)
        elif prefixes:
            rest[max(prefixes, key=len)].append(item)
        else:
            raise ConfigError(_unknown_name(item, known))
    return settings, rest


def _open_section(section: ParsedValue, cls: type) -> list[ParsedValue]:
    try:
        node = section.node(cls)
        if isinstance(node, ScalarNode) and node.value.lower() in ("null", "none", "", "~"):
            return []
        if not isinstance(node, MappingNode):
            flags = f", or flags --{section.name}.NAME=VALUE" if section.is_flag else ""
            raise DecodingError(f"a mapping of settings{flags}", node)
    except DecodingError as error:
        raise section.config_error(error) from error
    return list(section.items(node))


def _decode_all(settings: Mapping[str, ParsedValue], flags: Mapping[str, Flag]) -> dict[str, Any]:
    values = {}
    for name, setting in settings.items():
        hint = flags[name].hint
        try:
            values[name] = decode(hint, setting.node(hint))
        except DecodingError as error:
            raise setting.config_error(error) from error
    return values


def _refuse(item: ParsedValue, refusal: Unsupported) -> None:
    """Raise a `ConfigError` unless an unsupported setting has a harmless value."""
    try:
        value = plain_value(item.node(bool if item.value is None else Any))
    except DecodingError as error:
        raise item.config_error(error) from error
    if not refusal.is_harmless(value):
        raise ConfigError(f"{item.label} can't be used: {refusal.reason}")


def _decode_rest(
    schema: ConfigSchema,
    values: Mapping[str, Any],
    rest: Mapping[str, Sequence[ParsedValue]],
) -> dict[str, dict[str, Any]]:
    """Decode the settings of each open section, typed by the class that its other settings name."""
    decoded: dict[str, dict[str, Any]] = {prefix: {} for prefix in schema.open}
    for prefix, fields_of in schema.open.items():
        if prefix in schema.when_needed and not rest[prefix]:
            continue
        chosen = {
            name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)
        }
        cls = fields_of(chosen)
        if cls is not None:
            inner = ConfigSchema(cls, prefix)
            settings, _ = _assign(rest[prefix], inner, [*inner.names(), *schema.names()])
            decoded[prefix] = _fields(inner, _decode_all(settings, inner.flags), {})
        elif rest[prefix]:
            item = rest[prefix][0]
            needed = f"--{prefix}type=NAME" if item.is_flag else f"{prefix}type: NAME"
            note = f" Further settings of this section need {needed}."
            raise ConfigError(_unknown_name(item, schema.names(), note))
    return decoded


def _fields(
    schema: ConfigSchema, values: Mapping[str, Any], rest: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Return the given fields of a schema's class; a section with values becomes an instance of its class."""
    given = [*values, *(prefix for prefix, content in rest.items() if content)]
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(schema.cls):
        name = schema.prefix + flag_name(field)
        if REST in field.metadata:
            fields[field.name] = rest.get(schema.prefix, {})
        elif name in values:
            fields[field.name] = values[name]
        elif name in schema.sections and any(key.startswith(name + ".") for key in given):
            fields[field.name] = _build(schema.sections[name], values, rest)
    return fields


def _build(schema: ConfigSchema, values: Mapping[str, Any], rest: Mapping[str, Mapping[str, Any]]) -> Any:
    """Build the dataclass of a schema, sections first.

    Raises:
        ConfigError: a required setting is missing, or the class rejects the values.
    """
    fields = _fields(schema, values, rest)
    for field in dataclasses.fields(schema.cls):
        name = schema.prefix + flag_name(field)
        if field.name in fields or not is_required(field):
            continue
        if name in schema.sections:
            fields[field.name] = _build(schema.sections[name], values, rest)
        elif name in schema.flags:
            hint = describe_type(schema.flags[name].hint)
            raise ConfigError(f"--{name} is required: {hint}. Give --{name}=VALUE.")
    return schema.cls(**fields)


def _unknown_name(item: ParsedValue, known: Sequence[str], note: str = "") -> str:
    advice = " Add --help to list every setting."
    if item.is_flag:
        near = did_you_mean("--" + item.name, ["--" + name for name in known])
        return f"There is no flag --{item.name}.{near}{note}{advice}"
    return f"{item.place}: there is no setting '{item.name}'.{did_you_mean(item.name, known)}{note}{advice}"

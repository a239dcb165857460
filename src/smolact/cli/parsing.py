"""Flags and configuration files to dataclasses, the way LeRobot's users type them.

    --policy.type=smolvla --dataset.repo_id=me/data --batch_size=64 --resume --config_path=train.yaml

A dotted name is a field of a nested dataclass; a section may take the fields of a class that another setting names
(`--policy.type` → `SmolVLAConfig`). A file holds the same names, nested or dotted, in YAML or JSON; flags win over it,
and of a flag that is given twice the last one wins. Every mistake is a `ConfigError` that says where it stands.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode

from smolact.cli.decoding import DecodingError, decode, describe_type, entries, text_node
from smolact.errors import ConfigError, NotFoundError, did_you_mean, list_siblings
from smolact.settings import ALIASES, REFUSED, REST, RestClass

CONFIG_PATH = "config_path"
RECORDED = "when the run began: "

Config = TypeVar("Config")


@dataclasses.dataclass(frozen=True)
class ParsedValue:
    """A setting as it was given: a flag's text (None when bare) or a file's node, and where that stands."""

    name: str
    value: str | Node | None
    source: str

    def node(self, hint: Any) -> Node:
        """The YAML node of the value, for a setting of type `hint`."""
        if isinstance(self.value, Node):
            return self.value
        if self.value is None and hint is not bool:
            raise ConfigError(
                f"{self.source} needs a value: {describe_type(hint)}. Write {self.source}=VALUE."
            )
        return text_node(hint, "true" if self.value is None else self.value)


@dataclasses.dataclass(frozen=True)
class Flag:
    """One setting: its dotted name, its type, and the dataclass field that it fills."""

    name: str
    hint: Any
    field: dataclasses.Field[Any]

    @property
    def is_required(self) -> bool:
        """Whether it has no default."""
        return self.field.default is dataclasses.MISSING and self.field.default_factory is dataclasses.MISSING


class ConfigSchema:
    """What can be set on a dataclass: `flags`, the `sections` that hold them, and sections that are still `open`."""

    def __init__(self, cls: type, prefix: str = "") -> None:
        self.cls, self.prefix = cls, prefix
        self.flags: dict[str, Flag] = {}
        self.sections: dict[str, ConfigSchema] = {}
        self.aliases: dict[str, str] = {}
        self.open: dict[str, RestClass] = {}
        hints = typing.get_type_hints(cls)
        for field in dataclasses.fields(cls):
            if not field.init:
                continue
            name = prefix + field.name
            section = section_class(hints[field.name])
            if REST in field.metadata:
                self.open[prefix] = field.metadata[REST]
            elif section is not None and REFUSED not in field.metadata:
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

    def names(self) -> list[str]:
        """Every name that can be given."""
        return [*self.flags, *self.aliases]


def section_class(hint: Any) -> type | None:
    """The dataclass of a section (`T`, or `T | None`), None for a setting of its own."""
    kinds = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    classes = [kind for kind in kinds if isinstance(kind, type) and kind is not type(None)]
    return classes[0] if len(classes) == 1 and dataclasses.is_dataclass(classes[0]) else None


def parse(
    cls: type[Config],
    argv: Sequence[str],
    *,
    recorded: Callable[[Path], Mapping[str, str] | None] = lambda path: None,
) -> tuple[Config, dict[str, str]]:
    """The settings that `argv` and the file it may name give, as a `cls`, and where each of them was set.

    Args:
        cls: a dataclass; nested dataclasses are its sections.
        argv: the words after the command.
        recorded: for a configuration file that a run wrote, with every default in it: which settings had been set by
            hand (name to source). None for a file written by a person, in which every key counts.

    Returns:
        the configuration, and `explicit`: dotted name to source (`--steps=5`; `train.yaml, line 12`; `when the run began: …`).

    Raises:
        ConfigError: an unknown name, a value of the wrong type, a setting that is required or refused.
        NotFoundError: the configuration file is not there.
    """
    words = list(read_flags(argv))
    paths = [word for word in words if word.name == CONFIG_PATH]
    given = [word for word in words if word.name != CONFIG_PATH]
    by_hand: Mapping[str, str] | None = None
    from_file: list[ParsedValue] = []
    if paths:
        if not isinstance(paths[-1].value, str) or not paths[-1].value:
            raise ConfigError("--config_path needs a value: --config_path=FILE.yaml")
        path = Path(paths[-1].value).expanduser()
        by_hand = recorded(path)
        from_file = list(read_file(path))
    schema = ConfigSchema(cls)
    settings, rest = _assign([*from_file, *given], schema, schema.names())
    values = _decode_all(settings, schema.flags)
    explicit = {name: setting.source for name, setting in settings.items()}
    config = _build(schema, values, _decode_rest(schema, values, rest, explicit))
    if by_hand is not None:
        flags = {setting.source for setting in given}
        explicit = {name: source for name, source in explicit.items() if source in flags} | {
            # What the run was started with is not what was typed now: it may not begin with the dashes of a flag.
            name: source if source.startswith(RECORDED) else RECORDED + source
            for name, source in by_hand.items()
            if explicit.get(name) not in flags
        }
    return config, explicit


def read_flags(argv: Sequence[str]) -> Iterator[ParsedValue]:
    """The flags of a command line: `--name=value`, `--name value`, or `--name` alone.

    Raises:
        ConfigError: a word that is no flag and belongs to none.
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
    """The text of the last `--name=…` in `argv`; None when it is not given, or given without a value."""
    found = [flag.value for flag in read_flags(argv) if flag.name == name]
    return found[-1] if found and isinstance(found[-1], str) else None


def read_file(path: Path) -> Iterator[ParsedValue]:
    """The top settings of a YAML or JSON file.

    Raises:
        NotFoundError: the file is not there.
        ConfigError: it is not YAML (JSON), or not a mapping, or has a key twice.
    """
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "not there"
        raise NotFoundError(f"The configuration file {path} is {kind}. {list_siblings(path.absolute())}")
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".json":
            json.loads(text)
            text = text.replace("\t", " ")  # JSON has no tabs but between tokens; YAML takes none there
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
    yield from _inside(ParsedValue("", node, str(path)), str(path))


def _inside(section: ParsedValue, file: str | None) -> Iterator[ParsedValue]:
    """The settings in a section that was given as one mapping."""
    assert isinstance(section.value, Node)
    try:
        pairs = entries(section.value, "a mapping of settings (name: value)")
    except DecodingError as error:
        raise ConfigError(
            _complaint(ParsedValue(section.name, error.node, section.source), error, file)
        ) from error
    prefix = section.name + "." if section.name else ""
    for key, value in pairs:
        source = f"{file}, line {key.start_mark.line + 1}" if file else section.source
        yield ParsedValue(prefix + str(key.value), value, source)


def _assign(
    given: Sequence[ParsedValue], schema: ConfigSchema, known: Sequence[str]
) -> tuple[dict[str, ParsedValue], dict[str, list[ParsedValue]]]:
    """Which setting each given value is for; and for each open section, what must wait for its class.

    Raises:
        ConfigError: a name that nothing has; the nearest of `known` is proposed.
    """
    settings: dict[str, ParsedValue] = {}
    rest: dict[str, list[ParsedValue]] = {prefix: [] for prefix in schema.open}
    waiting = list(given)
    while waiting:
        one = waiting.pop(0)
        name = schema.aliases.get(one.name, one.name)
        prefixes = [prefix for prefix in rest if name.startswith(prefix)]
        if name in schema.flags:
            settings[name] = one
        elif name in schema.sections:
            waiting[:0] = _opened(one, schema.sections[name].cls)
        elif prefixes:
            rest[max(prefixes, key=len)].append(one)
        else:
            raise ConfigError(_unknown(one, known))
    return settings, rest


def _opened(section: ParsedValue, cls: type) -> list[ParsedValue]:
    from_flag = not isinstance(section.value, Node)
    try:
        node = section.node(cls)
    except DecodingError as error:
        raise ConfigError(_complaint(section, error)) from error
    if isinstance(node, ScalarNode) and node.value.lower() in ("null", "none", "", "~"):
        return []
    if not isinstance(node, MappingNode):
        expected = f"a mapping of settings, or flags --{section.name}.NAME=VALUE"
        raise ConfigError(_complaint(section, DecodingError(expected, node)))
    file = None if from_flag else section.source.rpartition(", line ")[0]
    return list(_inside(ParsedValue(section.name, node, section.source), file))


def _decode_all(settings: Mapping[str, ParsedValue], flags: Mapping[str, Flag]) -> dict[str, Any]:
    values = {}
    for name, one in settings.items():
        flag = flags[name]
        try:
            values[name] = decode(flag.hint, one.node(flag.hint))
        except DecodingError as error:
            raise ConfigError(_complaint(one, error)) from error
        if REFUSED in flag.field.metadata:
            reason, harmless = flag.field.metadata[REFUSED]
            if not harmless(values[name]):
                raise ConfigError(f"{_place(one)} can't be used: {reason}")
    return values


def _decode_rest(
    schema: ConfigSchema,
    values: Mapping[str, Any],
    rest: Mapping[str, Sequence[ParsedValue]],
    explicit: dict[str, str],
) -> dict[str, dict[str, Any]]:
    """The settings of each open section, typed by the class that the section's other settings name."""
    decoded: dict[str, dict[str, Any]] = {}
    for prefix, fields_of in schema.open.items():
        cls = fields_of(
            {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
        )
        if cls is None:
            if rest[prefix]:
                note = f" Further settings of this section need --{prefix}type=NAME."
                raise ConfigError(_unknown(rest[prefix][0], schema.names(), note))
            decoded[prefix] = {}
            continue
        inner = ConfigSchema(cls, prefix)
        settings, _ = _assign(rest[prefix], inner, [*inner.names(), *schema.names()])
        decoded[prefix] = _nested(inner, _decode_all(settings, inner.flags))
        explicit.update({name: one.source for name, one in settings.items()})
    return decoded


def _build(schema: ConfigSchema, values: Mapping[str, Any], rest: Mapping[str, Mapping[str, Any]]) -> Any:
    """The dataclass of a schema, sections first.

    Raises:
        ConfigError: a required setting is missing, or the class refuses the values.
    """
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(schema.cls):
        name = schema.prefix + field.name
        if REST in field.metadata:
            fields[field.name] = dict(rest[schema.prefix])
        elif name in values:
            fields[field.name] = values[name]
        elif name in schema.sections:
            touched = any(key.startswith(name + ".") for key in values)
            touched = touched or any(
                content and prefix.startswith(name + ".") for prefix, content in rest.items()
            )
            if touched or name + "." in rest or field.default is dataclasses.MISSING:
                fields[field.name] = _build(schema.sections[name], values, rest)
        elif name in schema.flags and schema.flags[name].is_required:
            raise ConfigError(
                f"--{name} is required: {describe_type(schema.flags[name].hint)}. Give --{name}=VALUE."
            )
    return schema.cls(**fields)


def _nested(schema: ConfigSchema, values: Mapping[str, Any]) -> dict[str, Any]:
    """Only what was given, top fields by name; a touched section as an instance of its class."""
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(schema.cls):
        name = schema.prefix + field.name
        if name in values:
            fields[field.name] = values[name]
        elif name in schema.sections and any(key.startswith(name + ".") for key in values):
            fields[field.name] = _build(schema.sections[name], values, {})
    return fields


def _unknown(one: ParsedValue, known: Sequence[str], note: str = "") -> str:
    how = " Add --help to list every setting."
    if one.source.startswith("--"):
        near = did_you_mean("--" + one.name, ["--" + name for name in known])
        return f"There is no flag --{one.name}.{near}{note}{how}"
    return f"{one.source}: there is no setting '{one.name}'.{did_you_mean(one.name, known)}{note}{how}"


def _place(one: ParsedValue) -> str:
    return one.source if one.source.startswith("--") else f"{one.source}: {one.name}"


def _complaint(one: ParsedValue, error: DecodingError, file: str | None = None) -> str:
    """Where, what was expected, what was found."""
    mark = error.node.start_mark
    if one.source.startswith("--"):
        at = f" (at {error.path.lstrip('.')})" if error.path else ""
        return f"{one.source}{at}: {error}"
    file = file or one.source.rpartition(", line ")[0] or one.source
    line = f", line {mark.line + 1}" if mark is not None else ""
    name = f"{one.name}{error.path}".lstrip(".")
    return f"{file}{line}: {name + ': ' if name else ''}{error}"


def _shortened(word: str, most: int = 100) -> str:
    return word if len(word) <= most else word[: most - 1] + "…"

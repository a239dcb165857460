"""Reads settings as they were given: flags in LeRobot's syntax, and the YAML or JSON file that `--config_path` names.

    --policy.type=smolvla --dataset.repo_id=me/data --batch_size=64 --resume --config_path=train.yaml

Values are decoded later, by `smolact.parsing`. Each keeps its source, so that every message about it names the flag, or the
file and the line.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import Node

from smolact.decoding import DecodingError, describe_type, entries, text_node, value_node
from smolact.errors import ConfigError, NotFoundError, SmolactError, list_siblings

CONFIG_PATH = "config_path"
_FLAG = re.compile(r"--([a-z][\w.]*\w)")


@dataclasses.dataclass(frozen=True)
class ParsedValue:
    """A setting as given.

    Attributes:
        name: its dotted name.
        value: a flag's text (None when bare), or a file's node.
        source: the flag as it was typed, or the file.
        line: the line in the file, if it is known.
    """

    name: str
    value: str | Node | None
    source: str
    line: int | None = None

    @classmethod
    def of(cls, name: str, value: Any, source: str | None = None) -> ParsedValue:
        """Return a setting with a value of Python: None, bool, int, float, str, Path, and lists and mappings of those."""
        return cls(name, value_node(value), source or f"--{name}={value}")

    @property
    def is_flag(self) -> bool:
        """Whether it is a flag, and not of a file."""
        return self.source.startswith("--")

    @property
    def place(self) -> str:
        """The flag, or the file and the line."""
        return self.source if self.line is None else f"{self.source}, line {self.line}"

    @property
    def label(self) -> str:
        """The flag, or the file, the line and the name."""
        return self.source if self.is_flag else f"{self.place}: {self.name}"

    def node(self, hint: Any) -> Node:
        """Return the value's YAML node, for a setting of type `hint`.

        Raises:
            ConfigError: a flag has no value.
            DecodingError: a flag's text is not valid YAML.
        """
        if isinstance(self.value, Node):
            return self.value
        if self.value is None and hint is not bool:
            raise ConfigError(
                f"{self.source} needs a value: {describe_type(hint)}. Write {self.source}=VALUE."
            )
        return text_node(hint, "true" if self.value is None else self.value)

    def config_error(self, error: DecodingError) -> ConfigError:
        """Return the error about a value that can't be decoded: its location, the expected type, the value."""
        if self.is_flag:
            at = f" (at {error.path.lstrip('.')})" if error.path else ""
            return ConfigError(f"{self.source}{at}: {error}")
        mark = error.node.start_mark
        line = f", line {mark.line + 1}" if mark is not None else ""
        name = f"{self.name}{error.path}".lstrip(".")
        return ConfigError(f"{self.source}{line}: {name + ': ' if name else ''}{error}")

    def items(self, node: Node) -> Iterator[ParsedValue]:
        """Yield the settings in `node`, the mapping of the section that is given here.

        Raises:
            ConfigError: it is not a mapping, or has a duplicate key.
        """
        try:
            pairs = entries(node, "a mapping of settings (name: value)")
        except DecodingError as error:
            raise self.config_error(error) from error
        prefix = self.name + "." if self.name else ""
        for key, value in pairs:
            line = None if self.is_flag or key.start_mark is None else key.start_mark.line + 1
            yield ParsedValue(prefix + str(key.value), value, self.source, line)


def split_file(argv: Sequence[str]) -> tuple[Path | None, list[ParsedValue]]:
    """Return the file that `--config_path` names, and the other flags."""
    words = list(read_flags(argv))
    paths = [word.value for word in words if word.name == CONFIG_PATH]
    if not paths:
        return None, words
    if not isinstance(paths[-1], str) or not paths[-1]:
        raise ConfigError("--config_path needs a value: --config_path=FILE.yaml")
    return Path(paths[-1]).expanduser(), [word for word in words if word.name != CONFIG_PATH]


def read_command_line(argv: Sequence[str]) -> list[ParsedValue]:
    """Return the settings of a command line: those of its file, then its flags.

    Raises:
        ConfigError, NotFoundError: as by `read_flags` and `read_file`.
    """
    path, flags = split_file(argv)
    return [*(() if path is None else read_file(path)), *flags]


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
    if node is not None:
        yield from ParsedValue("", node, str(path)).items(node)


def name_sources(error: SmolactError, given: Iterable[ParsedValue]) -> None:
    """Name in an error's message the file and the lines of settings that are not flags.

    Checks name a setting by its flag, since they do not know its source. `--steps=0 is too small` becomes
    `train.yaml, line 3: steps=0 is too small`.
    """
    if len(error.args) != 1:  # an error of the disk: a number and a text
        return
    last = {item.name: item for item in given}
    text = str(error.args[0])
    blamed = _FLAG.findall(re.sub(r"Did you mean [^?]*\?", "", text))  # a suggestion was not given
    named = [last[name] for name in dict.fromkeys(blamed) if name in last]
    named = [item for item in named if not item.is_flag]
    for item in named:
        text = re.sub(rf"--(?={re.escape(item.name)}(?![\w.]*\w))", "", text)
    for file in sorted({item.source for item in named}):
        lines = sorted({item.line for item in named if item.source == file and item.line is not None})
        where = f", line{'s' * (len(lines) > 1)} {' and '.join(map(str, lines))}" if lines else ""
        text = text if text.startswith(file) else f"{file}{where}: {text}"
    error.args = (text,)


def _shortened(word: str, most: int = 100) -> str:
    return word if len(word) <= most else word[: most - 1] + "…"

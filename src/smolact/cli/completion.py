"""`smolact completion bash|zsh|fish`: the script with which a shell completes commands, settings and values at the Tab key."""

from __future__ import annotations

import contextlib
import io
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from smolact.cli.command import command, split_words
from smolact.cli.help import FLAGS
from smolact.cli.main import COMMANDS, Command
from smolact.errors import ConfigError
from smolact.flags import CONFIG_PATH
from smolact.parsing import parse
from smolact.registry import ENVIRONMENTS, POLICIES, ROBOTS, TELEOPERATORS
from smolact.settings import setting

USAGE = "smolact completion bash|zsh|fish"

_VLMS = ("tiny", "small", "smolvlm2-256m", "smolvlm2-500m", "smolvlm2-2.2b")
TYPES = {
    "policy.vlm_model_name": _VLMS,
    "policy.vlm_checkpoint": _VLMS,
}
"""Built-in names for text settings, copied here because their modules take a second to import; a test compares them."""
REGISTRIES = {
    "policy.type": POLICIES,
    "robot.type": ROBOTS,
    "teleop.type": TELEOPERATORS,
    "env.type": ENVIRONMENTS,
}
"""Types that installed distributions add to."""

# A script passes the line up to the cursor and receives words, one per line; without any, the shell completes files.
SCRIPTS = {
    "bash": r"""# smolact in bash (3.2 or later). In ~/.bashrc: eval "$(smolact completion bash)"
_smolact() {
  local IFS=$'\n' line=${COMP_LINE:0:COMP_POINT}
  local word=${line##*[[:space:]]}
  COMPREPLY=($("${1/#\~/$HOME}" completion bash "$line" 2>/dev/null))
  # Readline replaces only $2, the part of the word behind the last = or :
  COMPREPLY=("${COMPREPLY[@]#"${word%"$2"}"}")
}
complete -o default -o nospace -F _smolact smolact
""",
    "zsh": r"""#compdef smolact
# smolact in zsh. In ~/.zshrc, below compinit: eval "$(smolact completion zsh)"
_smolact() {
  local -a lines found
  lines=(${(f)"$("${words[1]/#\~/$HOME}" completion zsh "${(j: :)words[1,CURRENT-1]} $PREFIX" 2>/dev/null)"})
  if (( $#lines )); then
    found=("${(@)lines%%$'\t'*}")
    lines=("${(@)lines/$'\t'/ -- }")
    compadd -Q -S '' -l -d lines -a found
  else
    compset -P '*='
    _files
  fi
}
if [[ $funcstack[1] == _smolact ]]; then _smolact "$@"; else compdef _smolact smolact; fi
""",
    "fish": r"""# smolact in fish. In ~/.config/fish/config.fish: smolact completion fish | source
function __smolact_found
    set -l program (string replace -r '^~' $HOME -- (commandline -opc)[1])
    set -g __smolact_words ($program completion fish (commandline -cp | string collect) 2>/dev/null)
    test -n "$__smolact_words"
end
complete -c smolact -n __smolact_found -f -a '(printf "%s\n" $__smolact_words)'
""",
}


@dataclass
class CompletionConfig:
    """Settings of `smolact completion`."""

    shell: Literal["bash", "zsh", "fish"] | None = setting(
        None, "The shell whose script is printed; it can be named without the flag."
    )
    line: str | None = setting(
        None, "A command line up to the cursor: print what can follow. The scripts call it."
    )


class Candidate(NamedTuple):
    """A word that can stand at the cursor, and its description."""

    word: str
    doc: str = ""

    @property
    def is_open(self) -> bool:
        """Whether more of the same word follows."""
        return self.word[-1] in "=."


@command(CompletionConfig, USAGE)
def run(argv: Sequence[str]) -> None:
    """Print a shell's completion script, or the completions of a line."""
    words, flags = split_words(argv)
    names = ("shell", "line")
    if len(words) > len(names):
        raise ConfigError(f"`smolact completion` takes one shell, not {len(words)} words: {USAGE}")
    named = [f"--{name}={word}" for name, word in zip(names, words, strict=False)]
    config = parse(CompletionConfig, [*named, *flags])
    if config.shell is None:
        raise ConfigError(f"`smolact completion` needs the name of a shell: {USAGE}")
    if config.line is None:
        sys.stdout.write(SCRIPTS[config.shell])
        return
    for candidate in candidates(config.line):
        # fish adds the space itself; bash and zsh do not, since some words are incomplete.
        space = "" if candidate.is_open or config.shell == "fish" else " "
        doc = f"\t{candidate.doc}" if candidate.doc and config.shell != "bash" else ""
        sys.stdout.write(f"{candidate.word}{space}{doc}\n")


def candidates(line: str) -> list[Candidate]:
    """Return the completions of the partial word at the end of `line`."""
    try:
        typed = shlex.split(line)
    except ValueError:  # inside a quotation
        return []
    before, current = (typed, "") if line[-1:].isspace() else (typed[:-1], typed[-1] if typed else "")
    before = [word for word in before[1:] if word != "--debug"]
    return [candidate for candidate in _candidates(before, current) if candidate.word.startswith(current)]


def subcommands(command: Command) -> Mapping[str, Command] | None:
    """Return a group's commands; None for a command without subcommands."""
    commands: Mapping[str, Command] = getattr(command.load(), "COMMANDS", COMMANDS)
    return None if commands is COMMANDS else commands


def _candidates(before: list[str], current: str) -> Iterator[Candidate]:
    commands: Mapping[str, Command] = COMMANDS
    for index, name in enumerate(before):
        if name not in commands:
            return
        inner = subcommands(commands[name])
        if inner is None:
            yield from _settings(commands[name], before[index + 1 :], current)
            return
        commands = inner
    yield from (Candidate(command.name, command.summary) for command in commands.values())
    if current.startswith("-"):
        yield from map(Candidate, ("--help", "--version", "--debug") if commands is COMMANDS else ("--help",))


def _names(name: str) -> Sequence[str]:
    """Return the names that a text setting accepts, as far as they are known."""
    registry = REGISTRIES.get(name)
    return TYPES.get(name, ()) if registry is None else tuple(registry)


def _settings(command: Command, before: Sequence[str], current: str) -> Iterator[Candidate]:
    """Yield settings of the command, or values of the setting being typed (`--name=VALUE`, `--name VALUE`)."""
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        command.run([*_type_flags(before), FLAGS])
    rows = [line.split("\t") for line in shown.getvalue().splitlines()]
    values = {name: _names(name) or choices.split() for name, choices, _ in rows}
    flag, equals, _ = current.partition("=")
    if equals:
        yield from (Candidate(f"{flag}={value}") for value in values.get(flag[2:], ()))
        return
    if before and before[-1].startswith("--") and "=" not in before[-1] and not current.startswith("-"):
        yield from map(Candidate, values.get(before[-1][2:], ()))
        return
    sections: set[str] = set()
    given = {word.partition("=")[0] for word in before}
    for flag, doc in ((f"--{name}", doc) for name, _, doc in rows):
        # Like folders in a path: sections first, and a section's settings once its name is typed.
        section, dot, _ = flag.removeprefix(current).partition(".")
        if dot and flag.startswith(current):
            sections.add(current + section + dot)
        elif flag not in given:
            yield Candidate(f"{flag}=", doc)
    yield from map(Candidate, sorted(sections))
    yield Candidate(f"--{CONFIG_PATH}=", "settings from a YAML or JSON file")
    yield from map(Candidate, ("--help", "--debug"))


def _type_flags(before: Sequence[str]) -> Iterator[str]:
    """Yield the flags that determine further settings, if they resolve locally and fast (no Hub, no LeRobot)."""
    for word, after in zip(before, [*before[1:], ""], strict=False):
        name, equals, value = word.removeprefix("--").partition("=")
        value = value if equals else after
        is_path = name == "policy.path" and ("://" in value or Path(value).expanduser().is_dir())
        if value in _names(name) or is_path:
            yield f"--{name}={value}"

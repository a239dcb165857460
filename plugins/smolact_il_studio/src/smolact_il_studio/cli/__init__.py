"""`smolact il-studio COMMAND …`: smolact's policies in a checkout of IL-Studio."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from smolact.cli.help import asks_for_help, help_text
from smolact.cli.main import DONE, Command, by_name, run_group
from smolact.errors import ConfigError
from smolact.parsing import parse
from smolact.settings import setting

COMMANDS = by_name(
    Command(
        "install",
        "put policy/smolvla, policy/smolandfast and their YAML into a checkout",
        "smolact_il_studio.cli.install",
    ),
    Command(
        "uninstall", "take them out again, and put back what was there", "smolact_il_studio.cli.uninstall"
    ),
    Command(
        "export",
        "a checkpoint that IL-Studio trained, as one of smolact and LeRobot",
        "smolact_il_studio.cli.export",
    ),
)


def run(argv: Sequence[str]) -> int:
    """Run one of the commands, or list them."""
    return run_group(
        "il-studio", "Smolact's policies in IL-Studio (github.com/WwZzz/ILStudio).", COMMANDS, argv
    )


@dataclass
class ForceConfig:
    """Settings of `install` and `uninstall`."""

    force: bool = setting(False, "Also replace files that were changed since; yours are kept beside.")


def change_checkout(
    command: str, summary: str, argv: Sequence[str], change: Callable[[Path, bool], list[tuple[str, str]]]
) -> int:
    """Run a command that changes the files of one checkout, and print the outcome for each."""
    usage = f"smolact il-studio {command} PATH [--force]"
    if asks_for_help(argv):
        sys.stdout.write(help_text(ForceConfig, usage, summary, argv) + "\n")
        return DONE
    positional = [word for word in argv if not word.startswith("-")]
    config = parse(ForceConfig, [word for word in argv if word.startswith("-")])
    if len(positional) != 1:
        raise ConfigError(f"`smolact il-studio {command}` needs the PATH of one checkout: {usage}")
    rows = change(Path(positional[0]), config.force)
    width = max(len(path) for path, _ in rows)
    sys.stdout.write("\n".join(f"{path.ljust(width)}  {done}" for path, done in rows) + "\n")
    return DONE

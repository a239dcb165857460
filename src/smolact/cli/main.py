"""`smolact COMMAND …`: finds the command, runs it, and turns errors into one message and an exit code."""

from __future__ import annotations

import contextlib
import importlib
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import NamedTuple

from smolact.errors import (
    ConfigError,
    MissingDependencyError,
    OutOfMemoryError,
    SmolactError,
    did_you_mean,
    missing_plugin,
)
from smolact.memory import LESS_TO_TRAIN, failed_allocation

DONE, FAILED, MISUSED, BROKEN, INTERRUPTED = 0, 1, 2, 70, 130
"""Exit codes; the last is the shell's for Ctrl-C."""
PLUGIN_COMMANDS = "smolact.commands"
"""The entry point group in which a plugin names the module of each of its commands."""


class Command(NamedTuple):
    """A command: name, one-line summary, and the module and name of its entry point, `run(argv) -> exit code`.

    Attributes:
        extra: of a command whose module is a plugin's, the extra that installs it. The plugin's entry point names the module.
    """

    name: str
    summary: str
    module: str = ""
    extra: str = ""
    function: str = "run"

    def load(self) -> ModuleType:
        """Import the command's module.

        Raises:
            MissingDependencyError: the module's plugin is not installed.
        """
        if not self.extra:
            return importlib.import_module(self.module)
        from importlib.metadata import entry_points

        found = next(iter(entry_points(group=PLUGIN_COMMANDS, name=self.name)), None)
        if found is None:
            raise missing_plugin(f"smolact {self.name}", self.extra)
        return importlib.import_module(found.module)

    def run(self, argv: Sequence[str]) -> int:
        """Run the command and return its exit code."""
        return int(getattr(self.load(), self.function)(argv))


def by_name(*commands: Command) -> dict[str, Command]:
    """Return the commands by name."""
    return {command.name: command for command in commands}


COMMANDS = by_name(
    Command("demo", "the whole road in minutes: demonstrations, training, evaluation", "smolact.cli.demo"),
    Command("train", "train a policy on a dataset, or resume a run", "smolact.cli.train"),
    Command("eval", "success rate of a policy in an environment", "smolact.cli.eval"),
    Command(
        "record",
        "record a robot's episodes to a dataset, driven by hand or by a policy",
        "smolact.cli.record",
    ),
    Command("serve", "answer robots elsewhere with a policy that is here", "smolact.cli.serve"),
    Command("rollout", "let a policy drive a robot or a simulation", "smolact.cli.rollout"),
    Command("replay", "play a recorded episode on a robot or in simulation", "smolact.cli.replay"),
    Command("dataset", "look at a dataset; `smolact dataset` lists how", "smolact.cli.dataset"),
    Command("train-tokenizer", "fit FAST action tokens on a dataset", "smolact.cli.train_tokenizer"),
    Command("robot", "ports, cameras, calibration; `smolact robot` lists what", "smolact.cli.robot"),
    Command("policy", "change a trained policy; `smolact policy` lists how", "smolact.cli.policy"),
    Command(
        "convert", "a SmolVLA checkpoint for LeRobot on smolact's engine, or back", "smolact.cli.convert"
    ),
    Command("push", "publish a checkpoint or a dataset on the Hugging Face Hub", "smolact.cli.push"),
    Command("doctor", "what a checkpoint or dataset is, and what would go wrong", "smolact.cli.doctor"),
    Command(
        "il-studio",
        "smolact in a checkout of IL-Studio; `smolact il-studio` lists how",
        extra="il-studio",
    ),
    Command("bench", "how quickly a policy answers on this machine", "smolact.cli.bench"),
    Command("info", "versions, devices and what is missing; the size of a policy", "smolact.cli.info"),
    Command("completion", "a script for tab completion in bash, zsh or fish", "smolact.cli.completion"),
)

_LOWER_PRECISION = "give --policy.int8=true (on a CPU) or --policy.fp8=true (on a GPU)"
LESS_MEMORY = {
    "train": LESS_TO_TRAIN,
    "eval": "Lower --eval.batch_size, the number of environments that are stepped side by side.",
    "serve": f"Lower --max-batch, or {_LOWER_PRECISION}: weights of less precision.",
    "record": f"If a policy drives, {_LOWER_PRECISION}: weights of less precision.",
    "rollout": f"To keep the weights in less precision, {_LOWER_PRECISION}.",
    "bench": "Lower --batch_size.",
}
"""Advice after an out-of-memory error, for commands whose settings affect memory."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (`sys.argv` when None) and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        return _run(words)
    except SmolactError as error:
        if debug:
            raise
        print_error(error)
        return MISUSED if isinstance(error, ConfigError) else FAILED
    except KeyboardInterrupt:
        if debug:
            raise
        sys.stderr.write("\nStopped.\n")
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output (head, less) has exited
        sys.stderr.close()
        return DONE
    except Exception as error:
        if debug:
            raise
        if package := _missing_package(error):
            _show(
                MissingDependencyError(
                    f"This needs the package '{package}', which `pip install smolact` brings and which is not installed: was smolact "
                    f"installed with --no-deps? Run: pip install {package}"
                )
            )
            return FAILED
        if message := failed_allocation(error):
            advice = LESS_MEMORY.get(words[0], "Close other programs, or use a machine with more memory.")
            _show(OutOfMemoryError(f"{message} {advice}"))
            return FAILED
        sys.stderr.write(
            f"This is a bug in smolact: {type(error).__name__}: {error}\n"
            "Run the command again with --debug, and report what it prints with the output of `smolact info`.\n"
        )
        return BROKEN


def print_error(error: BaseException) -> None:
    """Print a command's final error once, before robots, encoders and connections close."""
    if getattr(error, "is_printed", False):
        return
    error.is_printed = True  # type: ignore[attr-defined]
    if isinstance(error, SmolactError):
        _show(error)
    elif isinstance(error, KeyboardInterrupt):
        sys.stderr.write("\nStopping …\n")
        sys.stderr.flush()


@contextlib.contextmanager
def print_errors_at_once() -> Iterator[None]:
    """Print the block's error before the enclosing contexts close, which may take a while."""
    try:
        yield
    except BaseException as error:
        print_error(error)
        raise


def _missing_package(error: Exception) -> str | None:
    """Return the package that an import did not find, unless it is smolact."""
    name = (error.name or "").split(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    return name if name not in ("", "smolact") else None


def _run(words: list[str]) -> int:
    if not words or words[0] in ("--help", "-h", "help"):
        sys.stdout.write(_overview())
        return DONE if words else MISUSED
    if words[0] in ("--version", "-V"):
        sys.stdout.write(f"smolact {version()}\n")
        return DONE
    command = find_command(words[0], COMMANDS)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    # matplotlib logs at its first import that it builds the font cache.
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    return command.run(words[1:])


def version() -> str:
    """The installed version of smolact."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return installed("smolact")
    except PackageNotFoundError:
        return "(not installed: run from its source)"


def find_command(name: str, commands: Mapping[str, Command], group: str = "") -> Command:
    """Return the command `name` of `commands`, the subcommands of `group`.

    Raises:
        ConfigError: there is no such command; the message proposes the nearest.
    """
    if name not in commands:
        title = f"{group} {name}".strip()
        raise ConfigError(
            f"There is no command '{title}'.{did_you_mean(name, commands)} There are: {', '.join(commands)}."
        )
    return commands[name]


def run_group(group: str, about: str, commands: Mapping[str, Command], argv: Sequence[str]) -> int:
    """Run a subcommand of `group`, or list them all; return the exit code."""
    if argv and argv[0] not in ("--help", "-h", "help"):
        return find_command(argv[0], commands, group).run(argv[1:])
    sys.stdout.write(
        f"{about}\n\nusage: smolact {group} COMMAND --name=value …\n\n{command_rows(commands)}\n\n"
        f"smolact {group} COMMAND --help lists a command's settings.\n"
    )
    return DONE if argv else MISUSED


def command_rows(commands: Mapping[str, Command]) -> str:
    """Return one line per command."""
    rows = [(command.name, command.summary) for command in commands.values()]
    return "\n".join(f"  {line}" for line in aligned(rows))


def aligned(rows: Sequence[tuple[str, object]]) -> list[str]:
    """Return one line per row of name and value, the values in a column."""
    width = max(len(name) for name, _ in rows)
    return [f"{name.ljust(width)}  {value}".rstrip() for name, value in rows]


def _overview() -> str:
    return (
        "smolact: train, evaluate, record with and serve small vision-language-action policies\n\n"
        f"usage: smolact COMMAND --name=value …\n\n{command_rows(COMMANDS)}\n\n"
        "smolact COMMAND --help lists a command's settings; --version; --debug shows the traceback of an error.\n"
    )


def _show(error: SmolactError) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, highlight=False)
    message = str(error.args[-1]) if isinstance(error, OSError) and error.args else str(error)
    console.print(Text("error: ", style="bold red") + Text(message, style="default"), soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())

"""`@command`: a command's help page, the parsing of its arguments, and its exit code. Imports nothing heavy."""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
from collections.abc import Callable, Sequence
from typing import Any

from smolact.cli.help import asks_for_help, help_text
from smolact.errors import SmolactError
from smolact.flags import name_sources, read_command_line
from smolact.parsing import flattened, parse


def command(cls: type, usage: str) -> Callable[[Callable[..., int | None]], Callable[[Sequence[str]], int]]:
    """Return a decorator that makes a command's entry point, `run(argv) -> exit code`, from a function of its settings.

    The entry point prints the help page if the arguments ask for it. Otherwise it calls the function, whose parameters are
    any of:

    - `config`: the parsed settings, a `cls`. Without this parameter nothing is parsed.
    - `words`: the arguments without a dash, such as FOLDER in `smolact push FOLDER`. Without this parameter they are errors.
    - `argv`: all arguments, as given.

    The function returns the exit code; None stands for 0. Errors pass through: `main` turns them into messages and codes.
    Where one names a setting of the file of `--config_path`, it gets the file and the line.

    Args:
        usage: an example of the command line, for the help page. The page's summary is the docstring of the module if the
            function is its `run`, and the docstring of the function in a module of several commands.
    """

    def decorate(function: Callable[..., int | None]) -> Callable[[Sequence[str]], int]:
        names = inspect.signature(function).parameters
        described = sys.modules[function.__module__] if function.__name__ == "run" else function

        @functools.wraps(function)
        def run(argv: Sequence[str]) -> int:
            if asks_for_help(argv):
                sys.stdout.write(help_text(cls, usage, inspect.getdoc(described) or "", argv) + "\n")
                return 0
            words, flags = split_words(argv) if "words" in names else ([], argv)
            given: dict[str, Any] = {"argv": argv, "words": words}
            if "config" in names:
                given["config"] = parse(cls, flags)
            try:
                return function(**{name: given[name] for name in names}) or 0
            except SmolactError as error:
                with contextlib.suppress(SmolactError):  # the file itself, or a flag, is the error
                    name_sources(error, flattened(cls, read_command_line(flags)))
                raise

        return run

    return decorate


def split_words(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the arguments without a dash, and the flags, each of which must be one argument (`--name=value`)."""
    words = [word for word in argv if not word.startswith("-")]
    return words, [word for word in argv if word.startswith("-")]

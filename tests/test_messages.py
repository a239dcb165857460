"""Every flag that a message, a help line or a docstring of the source names is one that some command takes."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import smolact
from tests.test_docs import OTHERS, dry, known, settings  # noqa: F401  # the fixtures

SOURCE = Path(smolact.__file__).parent
PLUGINS = Path(__file__).parents[1] / "plugins"
FLAG = re.compile(r"(?<![\w-])--([a-z][a-z0-9_]*(?:\.[a-z][a-z0-9_]*)*)(?![\w.{-])")
OF_OTHERS = {
    *("help", "version", "debug", "name"),  # of every command; the last stands for any
    *("checkpoint_format", "checkpoint_dir", "strategy.type"),  # LeRobot's
    *("nproc_per_node", "multi_gpu", "logdir"),  # torchrun's, accelerate's, TensorBoard's
}
"""Flags of other programs, and those that every command takes."""


def named(path: Path) -> Iterator[tuple[int, str]]:
    """The flags in a module's strings, with their lines; what a message fills in is left out."""
    for node in ast.walk(ast.parse(path.read_text())):
        parts = node.values if isinstance(node, ast.JoinedStr) else [node]
        text = "".join(
            part.value if isinstance(part, ast.Constant) and isinstance(part.value, str) else "{"
            for part in parts
        )
        if isinstance(node, ast.JoinedStr) or (
            isinstance(node, ast.Constant) and isinstance(node.value, str)
        ):
            for match in FLAG.finditer(text):
                yield node.lineno, match.group(1)


def test_every_flag_in_the_source_is_there(settings: list[type], dry: None) -> None:  # noqa: F811
    there = set().union(*(known(cls) for cls in settings)) | OF_OTHERS | {name.rstrip(".") for name in OTHERS}
    # The other modules of the plugins also name flags of IL-Studio and LeRobot.
    ours = [
        *SOURCE.rglob("*.py"),
        *PLUGINS.rglob("cli/*.py"),
        *(PLUGINS / "smolact_transformers").rglob("*.py"),
    ]
    wrong = [
        f"{path.name}:{line} --{flag}"
        for path in ours
        for line, flag in named(path)
        if flag not in there and flag.replace("-", "_") not in there
    ]
    assert not wrong, "\n".join(sorted(set(wrong)))

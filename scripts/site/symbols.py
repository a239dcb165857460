"""Where the names are that the guide speaks of: files of this repository, classes, their members, functions."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PACKAGES = (ROOT / "src", ROOT / "packages/smolact-client/src", ROOT / "plugins/smolact_transformers/src")
"""Without `smolact_il_studio`, whose classes have IL-Studio's names: some of them are also names of ours, which the guide means."""
SUFFIXES = "py|json|yaml|yml|sbatch|sh|toml"
FILE = re.compile(rf"[\w.-]+(?:/[\w.-]+)+\.(?:{SUFFIXES})")
MEMBER = re.compile(r"_?[A-Z]\w*\.(?!md$)\w+(?:\(\))?")
CLASS = re.compile(r"[A-Z][A-Za-z]*[a-z][A-Z]\w*")
FUNCTION = re.compile(r"[a-z_]\w*\(\)")
FENCE = re.compile(r"^( *)(```+).*?^\1\2 *$", re.DOTALL | re.MULTILINE)
SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")


class Place(NamedTuple):
    """A file, and the line at which the name is made (0: the file itself)."""

    path: Path
    line: int = 0


def spans(markdown: str) -> list[str]:
    """Code within the sentences of a page."""
    return SPAN.findall(FENCE.sub("", markdown))


def looks_like_a_name(text: str) -> bool:
    """Whether a piece of code is of a form that must lead somewhere: `a/file.py`, `Class.member`, `function()`."""
    return any(form.fullmatch(text) for form in (FILE, MEMBER, FUNCTION))


def find(text: str) -> Place | None:
    """The place of a name; None for what is no name of ours, or several things' name."""
    if FILE.fullmatch(text):
        return _file(text)
    if MEMBER.fullmatch(text) or CLASS.fullmatch(text) or FUNCTION.fullmatch(text):
        places = _symbols().get(text.removesuffix("()"), [])
        return places[0] if len(places) == 1 else None
    return None


def _file(text: str) -> Place | None:
    for folder in (ROOT, ROOT / "src/smolact", ROOT / "src", PACKAGES[1]):
        if (folder / text).is_file():
            return Place(folder / text)
    return None


@functools.cache
def _symbols() -> dict[str, list[Place]]:
    found: dict[str, list[Place]] = {}
    for package in PACKAGES:
        for path in sorted(package.rglob("*.py")):
            for name, line in _names(ast.parse(path.read_text(encoding="utf-8"))):
                found.setdefault(name, []).append(Place(path, line))
    return found


def _names(module: ast.Module) -> Iterator[tuple[str, int]]:
    for node in module.body:
        if isinstance(node, ast.ClassDef):
            yield node.name, node.lineno
            yield from dict(_members(node)).items()
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node.name, node.lineno


def _members(node: ast.ClassDef) -> Iterator[tuple[str, int]]:
    for item in ast.walk(node):
        stored = isinstance(item, ast.Attribute) and isinstance(item.ctx, ast.Store)
        if stored and isinstance(item.value, ast.Name) and item.value.id == "self":
            yield f"{node.name}.{item.attr}", item.lineno
    for item in node.body:  # what the class declares wins over where it is assigned
        if isinstance(item, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield f"{node.name}.{item.name}", item.lineno
        elif isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            yield f"{node.name}.{item.target.id}", item.lineno
        elif isinstance(item, ast.Assign):
            for target in item.targets:
                if isinstance(target, ast.Name):
                    yield f"{node.name}.{target.id}", item.lineno

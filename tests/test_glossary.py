"""The words of the glossary in CONTRIBUTING.md: names and prose of the source use the field's terms, and the replaced ones stay out."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

import smolact
import smolact_client

ROOT = Path(__file__).parent.parent
SOURCES = sorted(
    path
    for folder in (Path(smolact.__file__).parent, Path(smolact_client.__file__).parent, ROOT / "plugins")
    for path in folder.rglob("*.py")
)
REPLACED_NAMES = {
    *(
        "Opened",
        "open_run",
        "teller",
        "KeptTokens",
        "SampleStream",
        "SeveralDraws",
        "take_drawn",
        "undisturbed",
    ),
    *("Expendable", "thinned", "put_aside", "strays", "is_litter", "Publisher", "Salvage", "find_whole"),
    *("PerProcess", "UnsavedEpisode", "DenseProduct", "Packer", "Recomputing", "kept_beside", "save_beside"),
    *("sole_engine", "Unsaid", "Told", "Pace", "Asks", "ThreadAsks", "AnswersAtOnce", "Obeys", "obeyed"),
    *("KnowsAges", "Jog", "Waiting", "Answering", "Asked", "Question", "RemoteChunks", "Link", "Hall"),
    *("depth_story", "tell_other_size", "look_at_files", "said_size", "why_not", "leave_out", "bytes_of_one"),
    *(
        "another_robot",
        "is_whole",
        "out_of_place",
        "errors_of_training",
        "find_last_episode",
        "folder_beside",
    ),
    *("read_tasks_v3", "has_only_leftovers", "entries_of", "carry_all", "by_file", "NoReaders"),
    *("Given", "carry_out", "is_half_replaced", "named_errors", "what_is_near", "go_the_road", "Claims"),
    *(
        "was_told",
        "is_as_written",
        "rehearse",
        "how_it_ran",
        "leave_with_parent",
        "BenchedPolicy",
        "PolicyQuestion",
    ),
}
REPLACED_WORDS = re.compile(
    r"\b(whoever|somebody|nobody|anew|litter|strays?|salvage[ds]?|put(?:s|ting)? aside|told of|lets? go of|goes on|"
    r"house|walls? of|rooms? of|floors? (?:above|below))\b",
    re.IGNORECASE,
)


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """The docstrings and comments of a file, with their lines."""
    text = path.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(text)):
        body = getattr(node, "body", None)
        for child in body if isinstance(body, list) else []:
            value = child.value if isinstance(child, ast.Expr) else None
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                yield child.lineno, value.value
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_replaced_words_stay_out(path: Path) -> None:
    in_help = path.parent.name == "cli"  # a command's docstring is its help text, which is a message
    wrong = [
        f"{path.name}:{line}: {found[0]!r}"
        for line, text in prose(path)
        if not (in_help and line == 1)
        for found in REPLACED_WORDS.finditer(text)
    ]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        names = [getattr(node, field, None) for field in ("id", "name", "attr", "arg")]
        wrong += [
            f"{path.name}:{getattr(node, 'lineno', 0)}: {name}" for name in names if name in REPLACED_NAMES
        ]
    assert not wrong, f"the glossary in CONTRIBUTING.md has the words to use: {wrong}"

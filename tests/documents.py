"""README and docs, as a test reads them: their commands, settings, names, links and pieces of Python."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]

FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"`([^`\n]+)`")
ENDS = {";", "|", "||", "&", "&&", ">", ">>"}


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: Path, *languages: str) -> list[str]:
    """What stands in fences of these languages."""
    return [body for language, body in FENCE.findall(read(page)) if language in languages]


def inline(page: Path) -> list[str]:
    """Code within sentences."""
    return INLINE.findall(FENCE.sub("", read(page)))


def typed(language: str, body: str) -> Iterator[str]:
    """What a user would type of a fence: all of `bash`, what follows the prompt in `console`."""
    for line in body.replace("\\\n", " ").splitlines():
        if language == "bash":
            yield line
        elif language == "console" and line.startswith("$ "):
            yield line[2:]


def lines(page: Path) -> Iterator[str]:
    """What a user would type of a page, in its order."""
    for language, body in FENCE.findall(read(page)):
        yield from typed(language, body)


def commands(page: Path) -> Iterator[list[str]]:
    """The words after `smolact` of every command on the page; `scripts/demo` is one, too. An ellipsis is left out.

    Of those in sentences the ones with settings: the others only give a command's name, which `names_of_commands` has.
    """
    sentences = (
        text
        for text in inline(page)
        if text.startswith("smolact ") and "--" in text and "COMMAND" not in text
    )
    for line in [*lines(page), *sentences]:
        words: list[str] = []
        for word in [*shlex.split(re.sub(r"([;|&>]+)(\s|$)", r" \1 ", line), comments=True), ";"]:
            if word not in ENDS:
                words.append(word)
                continue
            if "scripts/demo" in words:
                words[words.index("scripts/demo") :] = ["smolact", "demo", *words[1:]]
            if "smolact" in words and "pip" not in words:
                yield [word for word in words[words.index("smolact") + 1 :] if word != "…"]
            words = []


def in_order() -> list[Path]:
    """README and the guide's pages, as a reader comes to them: in the order of the navigation."""
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    names = re.findall(r": (\S+\.md)$", navigation, re.MULTILINE)
    return [ROOT / "README.md", *(ROOT / "docs" / name for name in names if "reference/" not in name)]


def names_of_commands(page: Path) -> Iterator[list[str]]:
    """What sentences name without settings: `smolact dataset check`."""
    for text in inline(page):
        if re.fullmatch(r"smolact( [a-z][a-z-]*)+", text):
            yield text.split()[1:]


def flags(page: Path) -> Iterator[list[str]]:
    """Settings within sentences, those that stand together in one list."""
    for text in inline(page):
        if text.startswith("--"):
            yield shlex.split(text)


def names(page: Path) -> Iterator[str]:
    """Modules, classes and functions of ours that the page speaks of, with all their dots."""
    for text in [*inline(page), *blocks(page, "python")]:
        yield from re.findall(r"\bsmolact(?:_client|_transformers|_il_studio)?(?:\.[a-zA-Z_]\w*)+", text)


def files(page: Path) -> Iterator[Path]:
    """What the page links to or names, of this repository."""
    text = read(page)
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        made = target.removeprefix("../").startswith("reference/")  # by scripts/docs, from the code
        if "://" not in target and not made:
            yield (page.parent / target).resolve()
    for name in re.findall(
        r"(?<![\w/.])(?:benchmarks|configs|docs|packages|plugins|scripts|tests)/[\w./-]*\w", text
    ):
        yield ROOT / name


def anchors(page: Path) -> Iterator[tuple[Path, str]]:
    """The headings that the page links to."""
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#([^)]+)\)", read(page)):
        if "://" not in target:
            yield (page.parent / target).resolve() if target else page, anchor


def headings(page: Path) -> set[str]:
    """A page's headings, as links name them."""
    titles = re.findall(r"^#+ (.+)$", FENCE.sub("", read(page)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}

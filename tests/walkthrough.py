"""The pages as one walk: what each command writes, what it reads, and which of them a machine without robot and network can type."""

from __future__ import annotations

import ast
import itertools
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.documents import ENDS, FENCE, ROOT, in_order, read, typed

NEED = ("**You need** ", "**需要**")
"""Begins the line in which a page says what has to be there."""
FIRST_STEPS = {ROOT / "README.md", ROOT / "docs/index.md"}
"""Both show how the environment and the demo are made."""
TRANSLATED = {ROOT / "docs/language.zh.md": ROOT / "docs/language.md"}
"""Their commands are those of another page, and are typed there."""

WRITES = {"--output", "--output-dir", "--output_dir", "--record-to", "--corrections", "-keyout", "-out", ">"}
READS = {
    *("--policy.path", "--dataset.root", "--dataset.repo_id", "--config_path", "--with", "--compare"),
    *("--results", "--env.mapping", "--policy.fast_tokenizer_path", "--policy.openpi_schema", "--datasets"),
    *("--token-file", "--tls-cert", "--tls-key", "--policy.token_file", "--policy.ca_file", "--policy.stats"),
}
WITH_FOLDERS = {"doctor", "push", "convert", "merge-adapters", "export", "rm"}
"""Commands whose bare words are folders and files; the last one of `push` is a name on the Hub."""
OF_EXAMPLES = {
    "train_in_a_script": ("outputs/examples/table", "outputs/examples/trained"),
    "processor_step": ("outputs/examples/step",),
}
OF_PYTHON = {"record_demonstrations": 1, "write_page": 1}
"""Functions that write to a folder, and which of their arguments it is."""
YOURS = re.compile(
    r"(my_user|lerobot|physical-intelligence|HuggingFaceTB)/[\w-]+$|[A-Z_]+(\.\w+)?$|.*(…|://)|pusht$|$"
)
"""What no page makes: names on the Hub, what the reader fills in, addresses, environments."""


@dataclass
class Piece:
    """What is typed or written at one place of a page: a fence of a language that a machine reads."""

    page: Path
    language: str
    body: str
    file: str | None  # the name that the sentence before gives it: it is a file
    start: int

    def commands(self) -> Iterator[list[str]]:
        """The words of each command, without what joins it to the next one."""
        for line in typed(self.language, self.body):
            words: list[str] = []
            for word in [*shlex.split(re.sub(r"([;|&()]+)(\s|$)", r" \1 ", line), comments=True), ";"]:
                if word not in ENDS - {">", ">>"} | {")"}:
                    words.append(word.removeprefix("("))
                elif words:
                    yield words
                    words = []


@dataclass
class Traces:
    """What a command leaves, and what it looks for, as paths from the folder in which all is typed."""

    writes: list[str] = field(default_factory=list)
    reads: list[str] = field(default_factory=list)


def pieces(page: Path) -> Iterator[Piece]:
    """What a reader types on a page, in its order; files are given before they are used."""
    text = read(page)
    for fence in FENCE.finditer(text):
        language, body = fence.groups()
        if language in ("bash", "console", "python", "yaml"):
            named = re.search(r"`([\w.]+\.(?:py|yaml))`:\n\n$", text[: fence.start()])
            yield Piece(page, language, body, named and named[1], fence.start())


def the_walk() -> list[Path]:
    return [page for page in in_order() if page not in TRANSLATED]


def traces_of(piece: Piece) -> Iterator[tuple[str, Traces]]:
    """Every command of a piece with its traces; of Python the whole piece."""
    if piece.file:
        yield piece.file, Traces(writes=[piece.file])
    elif piece.language == "python":
        yield "python", traces_of_python(piece.body)
    for words in piece.commands() if piece.language in ("bash", "console") else ():
        yield " ".join(words), traces_of_command(words)


def traces_of_python(text: str) -> Traces:
    tree, found = ast.parse(text), Traces()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and (index := OF_PYTHON.get(ast.unparse(node.func))) is not None:
            found.writes.append(ast.literal_eval(node.args[index]))
        elif isinstance(node, ast.keyword) and node.arg == "output_dir":
            found.writes.append(ast.literal_eval(node.value))
    strings = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    found.reads += [text for text in strings if str(text).startswith("outputs/") and text not in found.writes]
    return found


def traces_of_command(words: list[str]) -> Traces:
    """By its flags and bare words; whatever else speaks of `outputs/…` reads it."""
    found, words = Traces(), [word for word in words if not word.startswith("-n")]
    flags = {name: value for name, _, value in (word.partition("=") for word in words if "=" in word)}
    bare = [word for word in words if "=" not in word]
    for flag, value in flags.items():
        if flag in WRITES or flag == "OUTPUT":
            found.writes.append(value)
        elif flag in READS or "outputs/" in value:
            weights = re.sub(r":\s*[\d.]+", "", value)  # {FOLDER: WEIGHT, …}
            found.reads += [part for part in re.split(r"[\[\]{}, ']+", weights) if part]
    found.writes += [value for flag, value in itertools.pairwise(bare) if flag in WRITES]
    named = [word for word in bare if not word.startswith("-")]
    match named:
        case ["smolact", "record", *_] if "--dataset.repo_id" in flags:
            found.reads.remove(flags["--dataset.repo_id"])
            found.writes.append(recorded(flags["--dataset.repo_id"]))
        case ["smolact", "demo"] | ["scripts/demo"]:
            found.writes += [] if found.writes else ["outputs/demo"]
        case ["smolact", "dataset", "viz"] if "--html" in bare and not found.writes:
            found.writes.append(Path(flags["--dataset.root"]).name + ".html")
        case ["[", *_]:
            found.reads.clear()  # it only asks whether it is there
        case ["cp", source, target]:
            found.reads.append(source)
            found.writes.append(target)
        case ["git", "clone", address]:
            found.writes.append(address.rpartition("/")[2])
        case ["scripts/gpu", folder]:
            found.writes.append(folder)
        case ["python", script, *_] if Path(script).stem in OF_EXAMPLES and script.startswith("examples/"):
            found.writes += OF_EXAMPLES[Path(script).stem]
        case ["python", "examples/load_and_predict.py", *_]:
            found.reads += OF_EXAMPLES["train_in_a_script"]
        case _:
            rest = next((named[i + 1 :] for i, word in enumerate(named[:3]) if word in WITH_FOLDERS), [])
            found.reads += rest[:1]
    if "--resume=true" in words:
        found.reads += found.writes
        found.writes = []
    found.reads = [recorded(path) if path.startswith("me/") else path for path in found.reads]
    found.reads = [path for path in found.reads if not YOURS.match(path) and not (ROOT / path).is_file()]
    found.writes = [path for path in found.writes if not YOURS.match(path)]
    return found


def recorded(repo_id: str) -> str:
    """Where `smolact record` puts a dataset, and where every command looks for it by its name."""
    return f"outputs/datasets/{repo_id}"


def covers(folder: str, path: str) -> bool:
    return Path(path).is_relative_to(folder)


@dataclass
class Walk:
    """Page by page: what was made where, and what went wrong."""

    made: dict[str, list[Path]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    needs: dict[Path, list[set[Path]]] = field(default_factory=dict)
    """Of each page, for each thing that it reads, the other pages that make it."""

    def through(self, page: Path) -> None:
        """Everything that is typed there."""
        guarded = False
        for piece in pieces(page):
            for command, traces in traces_of(piece):
                for path in traces.reads:
                    makers = {
                        one for folder, those in self.made.items() if covers(folder, path) for one in those
                    }
                    if not makers:
                        self.problems.append(f"{page.name}: nothing made {path} before: {command}")
                    elif page not in makers:
                        self.needs.setdefault(page, []).append(makers)
                for path in traces.writes:
                    there = [one for one in self.made if covers(one, path) or covers(path, one)]
                    if there and not guarded:
                        pages = ", ".join(one.name for one in self.made[there[0]])
                        self.problems.append(f"{page.name}: {path} is there, of {pages}: {command}")
                    self.made.setdefault(path, []).append(page)
                # `[ -e FILE ] || COMMAND` does nothing where it is there.
                guarded = command.startswith("[ -e ")


def walk(pages: list[Path]) -> Walk:
    found = Walk()
    for page in pages:
        found.through(page)
    return found

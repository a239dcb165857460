"""All pages are typed one after the other in one folder, with budgets for a machine that has no GPU, no robot and no network."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.documents import ROOT
from tests.walkthrough import Piece, covers, pieces, the_walk, traces_of_command

NOT_TYPED = {
    "a robot": r"=so101_|smolact robot ",
    "the Hub, or a dataset of the reader": r"my_user/|lerobot/|^hf |^git |^smolact push (?!.*--dry-run)",
    "what the reader fills in": r"…|[= \[][A-Z_]+(?![\w/=])",
    "other programs": r"^(accelerate|torchrun|lerobot-\w+|pip|source|python -m|python scripts/\S+|scripts/(?!demo)\S+) ?|sbatch |ILStudio",
    "corrections, which a shortened recording may not need": r"--dataset.corrections_weight=only",
    "an extra that may be missing": r"(type|env)=(pusht|metaworld|aloha|libero|so101)\b|^smolact dataset viz (?!.*--html)",
    "another machine": r"^(openssl|umask) |gpu-box",
}
"""Kinds of commands that are left out, each with the pattern by which it is known."""
AT_LEAST = 65
PYTHON = {"README.md", "viz.md", "environments.md"}
"""Pages whose Python needs nothing but what was typed before."""

SMALL = {
    "--steps": 4,
    "--batch_size": 4,
    "--eval_freq": 4,
    "--eval.n_episodes": 2,
    "--repeats": 1,
    "--minutes": 0.02,
    "--robot.max_step": 100,
    "--robot.limits": "{action_0: [-100, 100], action_1: [-100, 100]}",
}
SMALL_OF = {"make-demos": {"--episodes": 20}, "rollout": {"--episodes": 1}}
"""Of these commands alone: elsewhere this flag chooses episodes that have to be there."""
ADDED = {
    "demo": ["--minutes"],
    "eval": ["--eval.n_episodes"],
    "bench": ["--repeats"],
    "rollout": ["--robot.max_step", "--robot.limits"],
}
"""What a command gets that is shown without it. A policy of four steps leaps, and the gate would refuse it."""


def small(words: list[str]) -> list[str]:
    """The command with a small budget."""
    if words[0] == "scripts/demo":
        words = ["smolact", "demo", *words[1:]]
    kind = next((word for word in words if word in {*SMALL_OF, *ADDED}), "")
    budget = {**SMALL, **SMALL_OF.get(kind, {})}
    given = {word.partition("=")[0] for word in words}
    words = [*words, *(f"{flag}=" for flag in ADDED.get(kind, []) if flag not in given)]
    named = [(word, *word.partition("=")[:2]) for word in words]
    return [f"{name}={budget[name]}" if equals and name in budget else word for word, name, equals in named]


class Terminal:
    """Types commands into one folder. A server runs beside them until another one begins, or until the page ends."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, folder / "log.txt"
        bin_first = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.environment = {**os.environ, "PATH": bin_first, "HF_HUB_OFFLINE": "1"}
        self.server: subprocess.Popen[bytes] | None = None
        self.port = 0
        self.not_made: list[str] = []  # by commands that are left out; what reads it is left out, too

    def start(self, words: list[str], log: Path) -> subprocess.Popen[bytes]:
        """`env` takes `NAME=VALUE` before a command."""
        words = [word.replace("8765", str(self.port)) for word in words]
        with log.open("w") as said:
            said.write(f"$ {' '.join(words)}\n")
            said.flush()
            return subprocess.Popen(
                ["env", *words],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
            )

    def type_in(self, words: list[str], expected: int = 0) -> None:
        code = self.start(words, self.log).wait()
        assert code == expected, f"exit code {code}, expected {expected}\n{self.log.read_text()[-3000:]}"

    def serve(self, words: list[str]) -> None:
        self.stop()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        log = self.folder / "server.txt"
        self.server = self.start([*words, f"--port={self.port}"], log)
        while self.server.poll() is None:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz"):
                return
            time.sleep(0.2)
        pytest.fail(log.read_text()[-3000:])

    def stop(self) -> None:
        """As Ctrl-C does."""
        if self.server is not None:
            self.server.send_signal(signal.SIGINT)
            self.server.wait(60)
            self.server = None


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    """In a folder with those files of a clone that commands read."""
    for name in ("configs", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    terminal = Terminal(tmp_path)
    yield terminal
    terminal.stop()


def type_piece(terminal: Terminal, piece: Piece) -> list[str]:
    """Type what stands there, but for `NOT_TYPED`; the commands that were typed."""
    done: list[str] = []
    if piece.file:
        (terminal.folder / piece.file).write_text(piece.body)
    elif piece.language == "python" and piece.page.name in PYTHON:
        terminal.type_in([sys.executable, "-c", piece.body])
    is_there = False
    for words in piece.commands() if piece.language in ("bash", "console") else ():
        text = " ".join(words)
        skipped, is_there = is_there, words[0] == "[" and (terminal.folder / words[2]).exists()
        traces = traces_of_command(words)
        lacks = any(covers(folder, path) for folder in terminal.not_made for path in traces.reads)
        if lacks or any(re.search(kind, text) for kind in NOT_TYPED.values()):
            terminal.not_made += traces.writes
            continue
        if words[0] == "[" or skipped:
            continue
        done.append(text)
        if words[:2] == ["smolact", "serve"]:
            terminal.serve(words)
        else:
            terminal.type_in(small(words), expected=int(f"{text}\nerror: " in piece.body))
    return done


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_all_pages_are_typed_in_one_folder(terminal: Terminal) -> None:
    typed: list[str] = []
    for page in the_walk():
        for piece in pieces(page):
            typed += type_piece(terminal, piece)
        terminal.stop()
    assert len(typed) >= AT_LEAST, f"NOT_TYPED leaves out too much; these were typed: {typed}"


def test_a_collision_is_met_when_it_is_typed(terminal: Terminal, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    command = "smolact dataset make-demos --env.type=tabletop --episodes=2 --output=outputs/a"
    page.write_text(f"```bash\n{command}\n{command}\n```\n")
    with pytest.raises(
        AssertionError, match=r"exit code 2, expected 0(.|\n)*outputs/a exists and is not empty"
    ):
        type_piece(terminal, *pieces(page))

"""`smolact push` as a user types it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from smolact.cli.main import main
from smolact.datasets.lock import FolderLock
from tests.datasets.make import write
from tests.evaluation.test_suite import checkpoint
from tests.hub_standin import THEIRS, TOKEN, Fault, StandIn

pytestmark = THEIRS


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(checkpoint(tmp_path_factory.mktemp("made"), 0))


def test_a_policy(hub: StandIn, made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", str(made), "me/x", "--private", "--tags=[blocks]", "--message=first"]) == 0
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert lines[0].startswith("model me/x: ") and " files, " in lines[0]
    assert "MB  model.safetensors" in lines[1]
    assert lines[-1] == f"Published: {hub.endpoint}/me/x"
    assert hub.model("me/x").private and hub.model("me/x").messages == ["first"]
    assert TOKEN not in shown.out + shown.err


def test_a_dataset_by_the_name_that_it_was_recorded_under(
    hub: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("outputs/datasets/me/push"), (3, 2))
    assert main(["push", "me/push", "me/push", "--license=mit"]) == 0
    shown = capsys.readouterr().out
    assert "tagged v3.0" in shown.splitlines()[0]
    assert shown.endswith(f"Published: {hub.endpoint}/datasets/me/push\n")
    assert b"license: mit" in hub.dataset("me/push").files["README.md"]


@pytest.mark.parametrize("flag", ["--dry-run", "--dry_run=true"])
def test_a_dry_run_shows_all_and_asks_nobody(
    hub: StandIn, made: Path, capsys: pytest.CaptureFixture[str], flag: str
) -> None:
    assert main(["push", str(made), "me/x", flag]) == 0
    shown = capsys.readouterr().out
    assert "model.safetensors" in shown and "pipeline_tag: robotics" in shown and "dry run" in shown
    assert hub.requests == []


def test_a_failure_is_one_message_and_an_exit_code(
    hub: StandIn, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.faults.append(Fault("/commit/", 403))
    assert main(["push", str(made), "me/x"]) == 1
    assert (
        "error: The model 'me/x' could not be written: your token may not write there"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("words", "code", "part"),
    [
        ([], 2, "needs a folder and a name"),
        (["FOLDER"], 2, "needs a folder and a name"),
        (["nowhere", "me/x"], 1, "The folder nowhere does not exist"),
        (["SET", "me/x", "--results=[a]"], 2, "--results is for policies"),
        (["FOLDER", "me/x", "--results=[nowhere]"], 1, "holds no evaluation"),
        (["FOLDER", "me/x", "--privat=true"], 2, "Did you mean '--private'?"),
    ],
)
def test_what_can_not_be_pushed_says_why(
    hub: StandIn,
    made: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    code: int,
    part: str,
) -> None:
    if "SET" in words:
        write(tmp_path / "set", (3,))
    places = {"FOLDER": str(made), "SET": str(tmp_path / "set")}
    assert main(["push", *(places.get(word, word) for word in words)]) == code
    assert part in capsys.readouterr().err
    assert hub.requests == []


def test_a_dataset_that_is_being_recorded_waits(
    hub: StandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write(tmp_path / "set", (3,))
    with FolderLock(root):
        assert main(["push", str(root), "me/x"]) == 1
    assert "is being written by" in capsys.readouterr().err
    assert hub.requests == []


def test_the_environment_says_which_hub(hub: StandIn, made: Path, tmp_path: Path) -> None:
    """In a process of its own, as HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE are set in a shell."""
    variables = {
        **os.environ,
        "HF_ENDPOINT": hub.endpoint,
        "HF_TOKEN": TOKEN,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
    }

    def push(**more: str) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-m", "smolact", "push", str(made), "me/x"]
        return subprocess.run(words, env=variables | more, capture_output=True, text=True, check=False)

    offline = push(HF_HUB_OFFLINE="1")
    assert offline.returncode == 1 and "HF_HUB_OFFLINE is set" in offline.stderr
    assert hub.requests == []
    done = push()
    assert done.returncode == 0, done.stderr
    assert "model.safetensors" in hub.model("me/x").files
    assert TOKEN not in done.stdout + done.stderr

"""Two commands that write into one folder: the second is told who the first is, and what else it may do."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from smolact.cli.main import main
from smolact.lock import writing_into
from tests.training.runs import DATASET, SMALL

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no such lock")

COMMANDS = [
    ["train", f"--dataset.root={DATASET}", *SMALL, "--output_dir=FOLDER"],
    ["eval", "--policy.path=POLICY", "--env.type=tabletop", "--output_dir=FOLDER"],
    ["demo", "--minutes=0.01", "--output=FOLDER"],
    ["train-tokenizer", f"--dataset.root={DATASET}", "--output=FOLDER"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_a_second_writer_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    folder, policy = tmp_path / "out", tmp_path / "policy"
    policy.mkdir()
    (policy / "config.json").write_text('{"type": "smolvla"}')
    words = [word.replace("FOLDER", str(folder)).replace("POLICY", str(policy)) for word in command]
    with writing_into(folder, instead=None):
        assert main(words) == 1
        said = " ".join(capsys.readouterr().err.split())
        assert re.search(rf"is being written by process {os.getpid()} on \S+ since ", said)
        flag = re.search(r"choose another (--\w+)\.", said)
        assert flag is not None and any(word.startswith(f"{flag[1]}=") for word in words)
        assert [entry.name for entry in folder.iterdir()] == [".lock"]
    assert not folder.exists()

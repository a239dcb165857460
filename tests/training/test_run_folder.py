"""One writer to a run's folder; what a killed run left there; a run that is complete."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from smolact.cli.main import main
from smolact.errors import ConfigError, WriteError
from smolact.lock import LOCK_FILE, writing_into
from smolact.training.run_folder import BEGUN
from tests.training.runs import DATASET, QUICK, SMALL, run

TOP = Path(__file__).parents[2]
FLAGS = (f"--dataset.root={DATASET}", *SMALL, *QUICK)
ENDLESS = ("--steps=1000000",)
pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no such lock")


@contextmanager
def training(*argv: str) -> Iterator[subprocess.Popen[str]]:
    """`smolact train` in a process of its own, from its first measurement on; killed in the end."""
    path = os.pathsep.join([str(TOP / "src"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "smolact", "train", *argv]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}
    ) as child:
        try:
            assert child.stderr is not None
            said = []
            while not (said and re.match(r"step \d+/", said[-1])):
                said.append(child.stderr.readline())
                assert said[-1], "".join(said)
            yield child
        finally:
            child.kill()


def error_of(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(["train", *argv]) == 1
    return " ".join(capsys.readouterr().err.split())


def test_a_second_training_is_told_who_writes_there_and_since_when(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    with training(*FLAGS, *ENDLESS, f"--output_dir={folder}") as first:
        said = error_of(capsys, *FLAGS, "--steps=1", f"--output_dir={folder}")
        assert re.search(
            rf"is being written by process {first.pid} on \S+ since 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d\S* \(\S+ train ",
            said,
        )
        assert "choose another --output_dir" in said
        assert main(["train", *FLAGS, "--steps=1", f"--output_dir={tmp_path / 'another'}"]) == 0
        capsys.readouterr()
        # It has no checkpoint yet, and is no dead run either.
        assert "is being written by" in error_of(capsys, "--resume=true", f"--output_dir={folder}")


def test_a_second_resume_leaves_the_first_one_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    run(folder, "--steps=1")
    resume = ("--resume=true", f"--output_dir={folder}", *ENDLESS, "--save_freq=5")
    with training(*resume) as first:
        saving = folder / "checkpoints" / ".tmp-000000000000-000009"  # as a save under way has one
        saving.mkdir()
        assert f"process {first.pid}" in error_of(capsys, *resume)
        assert saving.is_dir()
        first.send_signal(signal.SIGINT)
        assert first.wait(60) == 130
    assert saving.is_dir()
    stopped = (folder / "checkpoints" / "last").resolve()
    assert main(["train", "--resume=true", f"--output_dir={folder}", f"--steps={int(stopped.name) + 1}"]) == 0
    assert not saving.exists()  # whoever wrote it is dead
    assert {entry.name for entry in folder.iterdir()} >= {"checkpoints", "metrics.jsonl"}
    assert not (folder / LOCK_FILE).exists()


def test_a_resume_goes_on_from_the_checkpoint_that_is_last_when_it_holds_the_folder(tmp_path: Path) -> None:
    from smolact.cli.train import read_settings
    from smolact.training.train import train

    folder = tmp_path / "run"
    run(folder, "--steps=4", "--save_freq=2")
    last = folder / "checkpoints" / "last"
    last.unlink()
    last.symlink_to("000002")
    config = read_settings(["--resume=true", f"--output_dir={folder}", "--steps=5"])
    last.unlink()
    last.symlink_to("000004")  # another process has finished meanwhile
    ended = train(config)
    assert ended.step == 5
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5]


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    given = (*FLAGS, "--seed=7", f"--output_dir={folder}")
    with training(*given, *ENDLESS) as killed:
        killed.kill()
        killed.wait()
    (folder / "checkpoints").mkdir(exist_ok=True)
    (folder / "checkpoints" / ".tmp-000000000000-000001").mkdir()
    assert main(["train", *given, "--steps=2"]) == 2
    hint = re.search(r"--resume=true", capsys.readouterr().err)
    assert hint is not None
    assert main(["train", "--resume=true", f"--output_dir={folder}", "--steps=2"]) == 0
    run(tmp_path / "straight", "--steps=2", "--seed=7")
    names = (
        "checkpoints/000002/pretrained_model/model.safetensors",
        "checkpoints/000002/training_state/rng_state.safetensors",
    )
    for name in names:
        assert (folder / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2]
    assert {entry.name for entry in (folder / "checkpoints").iterdir()} == {"000002", "last"}
    assert not (folder / BEGUN).exists() and not (folder / LOCK_FILE).exists()


def test_a_supervisor_may_give_all_flags_and_resume_each_time(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / LOCK_FILE).write_text("")  # killed while it opened the dataset
    command = ["train", *FLAGS, "--steps=1", f"--output_dir={folder}", "--resume=true"]
    assert main(command) == 0
    assert (folder / "checkpoints" / "000001").is_dir()


def test_a_folder_that_holds_more_than_a_begun_run_is_not_begun_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    run(folder, "--steps=1", "--save_checkpoint=false")
    (folder / BEGUN).write_text(json.dumps([*FLAGS, "--steps=1"]))
    (folder / "notes.txt").write_text("mine")
    assert main(["train", "--resume=true", f"--output_dir={folder}"]) == 1
    assert "holds more than a run leaves" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"nothing to go on from. Remove the folder"):
        run(folder, "--steps=1")
    (folder / "notes.txt").unlink()
    assert main(["train", "--resume=true", f"--output_dir={folder}"]) == 0


def test_a_run_that_is_complete_says_so_and_that_is_no_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "run"
    run(folder, "--steps=2")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    caplog.set_level("INFO")
    data = tmp_path / "elsewhere"
    for _ in range(2):  # whatever has become of the dataset
        assert main(["train", "--resume=true", f"--output_dir={folder}", f"--dataset.root={data}"]) == 0
    assert "The run is complete" in caplog.text and "--steps=2" in caplog.text
    assert str(folder / "checkpoints" / "000002") in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before
    assert main(["train", "--resume=true", f"--output_dir={folder}", "--steps=3"]) == 0  # as the hint says
    assert (folder / "checkpoints" / "000003").is_dir()


def test_what_can_not_be_trained_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        run(tmp_path / "a" / "b", "--steps=1", "--rename_map={nothing: something}")
    assert not any(tmp_path.iterdir())


def test_a_folder_is_let_go_of_and_a_dead_writer_keeps_nobody_out(tmp_path: Path) -> None:
    with writing_into(tmp_path / "out", instead="choose another --output"):
        again = writing_into(tmp_path / "out", instead="choose another --output")
        with pytest.raises(WriteError, match=r"done, stop it, or choose another --output\."), again:
            pass
        (tmp_path / "out" / "result").write_text("kept")
    assert [entry.name for entry in (tmp_path / "out").iterdir()] == ["result"]
    (tmp_path / "out" / LOCK_FILE).write_text("what a dead writer left")
    with writing_into(tmp_path / "out", instead=None):
        assert json.loads((tmp_path / "out" / LOCK_FILE).read_text())["pid"] == os.getpid()
    shutil.rmtree(tmp_path / "out")
    with writing_into(tmp_path / "out" / "deeper", instead=None) as is_alone:
        assert is_alone
    assert not (tmp_path / "out").exists()

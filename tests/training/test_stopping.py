"""A stop is heard wherever a run is: in its last step, while it evaluates, validates, or waits for data."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from smolact.cli.main import main
from smolact.training.data import TrainDataset
from smolact.training.tracking import Ended, Event, Measured, Saved, Stepped
from smolact.training.train import train
from smolact.training.validation import Validation
from tests.hub_standin import THEIRS, StandIn
from tests.training.runs import QUICK, SMALL, Recorder, settings

TOP = Path(__file__).parents[2]
PATIENCE = 60
"""Seconds; what is not heard would go on for hours."""


def stop_at(kind: type[Event], step: int) -> Any:
    def listen(event: Event) -> None:
        if isinstance(event, kind) and event.step == step:
            os.kill(os.getpid(), signal.SIGINT)

    return listen


def train_until_stopped(output: Path, *argv: str, stop: Any) -> tuple[Ended, Recorder]:
    config = settings(*SMALL, *QUICK, f"--output_dir={output}", *argv)
    recorder = Recorder()
    return train(config, listeners=[recorder, stop]), recorder


def command(*argv: str) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(TOP / "src"), str(TOP / "packages/smolact-client/src")])
    return subprocess.Popen(
        [sys.executable, "-m", "smolact", *argv],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )


def read_until(child: subprocess.Popen[str], pattern: str) -> None:
    assert child.stderr is not None
    said: list[str] = []
    while not (said and re.search(pattern, said[-1])):
        said.append(child.stderr.readline())
        assert said[-1], "".join(said)


def test_a_stop_in_the_last_step_is_told_and_the_run_is_complete(tmp_path: Path) -> None:
    ended, recorder = train_until_stopped(tmp_path / "run", "--steps=2", stop=stop_at(Stepped, 2))
    assert ended.is_complete and ended.is_stopped
    assert [event.step for event in recorder.of(Saved)] == [2]


@THEIRS
def test_a_stop_in_the_last_step_publishes_nothing_and_says_how_to(
    hub: StandIn, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    push = ("--policy.push_to_hub=true", "--policy.repo_id=me/trained", "--policy.private=true")
    train_until_stopped(tmp_path / "run", "--steps=1", *push, stop=stop_at(Stepped, 1))
    assert not hub.model("me/trained").messages
    words = re.search(r"smolact (push .* me/trained --private)", caplog.text)
    assert words is not None and main(words[1].split()) == 0
    assert "model.safetensors" in hub.model("me/trained").files


def test_a_stop_while_waiting_for_data_keeps_what_was_learned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, reads = TrainDataset.__getitems__, []

    def hangs(self: TrainDataset, places: Any) -> Any:
        reads.append(places)
        if len(reads) == 3:
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
            time.sleep(3600)
        return read(self, places)

    monkeypatch.setattr(TrainDataset, "__getitems__", hangs)
    ended, recorder = train_until_stopped(tmp_path / "run", "--steps=9", stop=lambda event: None)
    assert (ended.step, ended.is_complete, ended.is_stopped) == (2, False, True)
    assert [event.step for event in recorder.of(Saved)] == [2]
    monkeypatch.setattr(TrainDataset, "__getitems__", read)
    assert main(["train", "--resume=true", f"--output_dir={tmp_path / 'run'}", "--steps=3"]) == 0


def test_a_validation_is_left_when_a_stop_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    validates, asked = Validation.loss, []

    def stopped_within(self: Validation, start: Any, accelerator: Any, stops: Any) -> float | None:
        def asks() -> bool:
            asked.append(1)
            if len(asked) == 2:
                os.kill(os.getpid(), signal.SIGINT)
            return bool(stops())

        return validates(self, start, accelerator, asks)

    monkeypatch.setattr(Validation, "loss", stopped_within)
    more = ("--dataset.eval_split=0.25", "--eval_steps=1", "--steps=9")
    ended, recorder = train_until_stopped(tmp_path / "run", *more, stop=lambda event: None)
    assert ended.step == 1 and ended.checkpoint is not None and len(asked) == 2
    assert "validation_loss" not in recorder.of(Measured)[0].metrics
    # What is left after a stop is not validated at all.
    ended, recorder = train_until_stopped(tmp_path / "more", *more, stop=stop_at(Stepped, 1))
    assert ended.step == 1 and len(asked) == 2


def test_an_evaluation_in_a_training_is_left_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    made = tmp_path / "made"
    assert main(["dataset", "make-demos", "--env.type=tabletop", "--episodes=2", f"--output={made}"]) == 0
    flags = (f"--dataset.root={made}", *SMALL, *QUICK, f"--output_dir={folder}", "--steps=2")
    endless = ("--env.type=tabletop", "--eval_freq=1", "--eval.n_episodes=1000000")
    with command("train", *flags, *endless) as child:
        try:
            read_until(child, "step 1/2")
            time.sleep(1)
            child.send_signal(signal.SIGINT)
            assert child.wait(PATIENCE) == 130
        finally:
            child.kill()
    assert (folder / "checkpoints" / "000001").is_dir()

"""The demo in small: the whole road, and everything that it promises at the end of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from smolact.cli import demo, demo_evaluation
from smolact.cli.main import main
from smolact.cli.train import ProgressLine
from smolact.training.tracking import Event, Stepped
from tests.pages import Page

PROMISED = {
    *("success_rate", "confidence_interval", "episodes", "per_task", "language_control"),
    *("unseen_combinations", "unseen_phrasings", "train_seconds", "samples_per_second", "total_seconds"),
}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "BATCH_SIZE", 4)
    monkeypatch.setattr(demo, "DEMONSTRATIONS_AT_LEAST", 20)
    monkeypatch.setattr(demo_evaluation, "FILMED", 2)


def test_the_demo_leaves_what_it_promises(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "demo"
    assert main(["demo", "--minutes=0.05", f"--output={folder}"]) == 0
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics.keys() >= PROMISED
    assert metrics["language_control"].keys() >= {"asked_goal_reached", "old_goal_reached"}
    assert metrics["demonstrations"] == 20 and metrics["n_action_steps"] == 4
    assert metrics["episodes"] == demo_evaluation.ROUNDS[0] and metrics["minutes"] == 0.05
    page = (folder / "report.html").read_text()
    Page(page)
    assert "Learning rate" in page and "unseen phrasings" in page and "num_vlm_layers" in page
    assert list((folder / "videos").glob("as_asked_*.mp4")) and list(
        (folder / "videos").glob("swapped_*.mp4")
    )
    shown = capsys.readouterr().err
    assert str(folder / "report.html") in shown and "--task=" in shown
    assert shown.startswith("smolact demo: 0.05 minutes")
    assert "10 episodes in each of 6 conditions were played" in shown
    assert f"step {metrics['steps']} " in shown  # how many there are in three seconds is the machine's

    assert main(["demo", f"--output={folder}", "--restart=true"]) == 2
    assert "holds a demo that is complete" in capsys.readouterr().err


def test_the_demo_goes_the_same_road_in_pusht(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("gym_pusht", reason="needs the extra: pip install '.[pusht]'")
    monkeypatch.setattr(demo, "DEMONSTRATIONS_AT_LEAST", 2)
    monkeypatch.setattr(demo_evaluation, "ROUNDS", (1,))
    folder = tmp_path / "demo"
    assert main(["demo", "--minutes=0.05", "--env=pusht", f"--output={folder}"]) == 0
    page = (folder / "report.html").read_text()
    assert "synthetic pictures of such tables" not in page
    assert "--env.type=pusht\n" in capsys.readouterr().err


def test_an_environment_without_an_expert_is_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--env=CartPole-v1", f"--output={tmp_path / 'demo'}"]) == 2
    assert "no scripted expert" in capsys.readouterr().err and not (tmp_path / "demo").exists()


def test_a_demo_that_was_stopped_leaves_a_way_to_begin_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    show = ProgressLine.__call__

    def press(self: ProgressLine, event: Event) -> None:
        show(self, event)
        if isinstance(event, Stepped) and event.step == 5:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(ProgressLine, "__call__", press)
    folder = tmp_path / "demo"
    assert main(["demo", "--minutes=0.05", f"--output={folder}"]) == 130
    assert not (folder / "evaluation").exists() and not (folder / ".lock").exists()
    typed = f"To begin it again: smolact demo --minutes=0.05 --output={folder} --restart=true"
    assert typed in capsys.readouterr().err
    assert main(["demo", "--minutes=0.05", f"--output={folder}"]) == 2
    assert "--restart=true" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.setattr(demo, "run_steps", lambda config, began: None)
    assert main(["demo", "--minutes=0.05", f"--output={folder}", "--restart=true"]) == 0
    assert sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")) == ["demo.json"]


def test_what_no_demo_left_is_never_removed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "demo.json").write_text("{}")
    (tmp_path / "thesis.tex").write_text("mine")
    assert main(["demo", f"--output={tmp_path}", "--restart=true"]) == 2
    assert "is not empty" in capsys.readouterr().err and (tmp_path / "thesis.tex").exists()


def test_the_first_sign_comes_before_anything_slow(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; sys.modules['torch'] = None\nfrom smolact.cli.main import main; main(sys.argv[1:])",
            "demo",
            "--minutes=1",
            f"--output={tmp_path / 'demo'}",
        ],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert process.stderr.readline().startswith("smolact demo: 1 minute, into")
    process.kill()
    process.communicate()


def test_an_examination_plays_only_rounds_that_end_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from smolact.evaluation import suite
    from smolact.evaluation.suite import Shard
    from smolact.policies import factory
    from smolact.runtime import local

    now, rounds = [1000.0], []

    def play(*_args: Any, n_episodes: int, **_more: Any) -> None:
        now[0] += 2.0 * (n_episodes - (rounds[-1] if rounds else 0))
        rounds.append(n_episodes)

    monkeypatch.setattr(time, "time", lambda: now[0])
    monkeypatch.setattr(suite, "run_suite", play)
    monkeypatch.setattr(factory, "load_policy", lambda *_args, **_more: ())
    monkeypatch.setattr(local, "LocalPolicy", lambda: None)
    demo_evaluation.DemoEvaluation(tmp_path, "tabletop", tmp_path / "log", 0, until=1045.0)(Shard())
    assert rounds == [10, 20]
    rounds.clear()
    demo_evaluation.DemoEvaluation(tmp_path, "tabletop", tmp_path / "log", 0, until=0.0)(Shard())
    assert rounds == [10]

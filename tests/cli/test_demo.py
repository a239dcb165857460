"""The demo in small: the whole road, and everything that it promises at the end of it."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from smolact.cli import demo
from smolact.cli.main import main
from smolact.training.tracking import Measured
from tests.pages import Page

PROMISED = {
    *("success_rate", "confidence_interval", "episodes", "per_task", "language_control"),
    *("unseen_combinations", "unseen_phrasings", "train_seconds", "samples_per_second", "total_seconds"),
}


def test_the_demo_leaves_what_it_promises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "MOST_EVALUATED", 3)
    monkeypatch.setattr(demo, "PROBE", 20)
    monkeypatch.setattr(demo, "FILMED", 2)
    monkeypatch.setattr(demo, "BATCH_SIZE", 4)
    monkeypatch.setattr(demo, "DEMONSTRATIONS_AT_LEAST", 20)
    folder = tmp_path / "demo"
    assert main(["demo", "--minutes=0.05", f"--output={folder}"]) == 0
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics.keys() >= PROMISED
    assert metrics["language_control"].keys() >= {"asked_goal_reached", "old_goal_reached"}
    assert metrics["demonstrations"] == 20 and metrics["n_action_steps"] == 4
    page = (folder / "report.html").read_text()
    Page(page)
    assert "Learning rate" in page and "unseen phrasings" in page and "num_vlm_layers" in page
    assert list((folder / "videos").glob("as_asked_*.mp4")) and list(
        (folder / "videos").glob("swapped_*.mp4")
    )
    shown = capsys.readouterr().err
    assert str(folder / "report.html") in shown and "--task=" in shown

    assert main(["demo", f"--output={folder}"]) != 0
    assert "is not empty" in capsys.readouterr().err


@pytest.mark.parametrize("rates", [1, 6])
def test_the_demo_stops_while_it_measures_this_machine_and_in_the_last_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rates: int
) -> None:
    """Two rates are the measurement's; then come 40 steps, of which each tenth gives one."""
    monkeypatch.setattr(demo, "PROBE", 20)
    monkeypatch.setattr(demo, "BATCH_SIZE", 4)
    monkeypatch.setattr(demo, "DEMONSTRATIONS_AT_LEAST", 3)
    monkeypatch.setattr(demo, "EPISODES_PER_MINUTE", 1)
    collect, settings = demo._collect, demo.training_settings
    monkeypatch.setattr(
        demo, "training_settings", lambda *given, steps=40: settings(*given[:3], 20 if steps == 20 else 40)
    )

    def press(event: Any, measured: list[float]) -> None:
        collect(event, measured)
        if isinstance(event, Measured) and len(measured) == rates:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(demo, "_collect", press)
    folder = tmp_path / "demo"
    assert main(["demo", "--minutes=0.05", f"--output={folder}"]) == 130
    assert (folder / "train").exists() == (rates > 2)
    assert not (folder / "evaluation").exists() and not (folder / ".lock").exists()

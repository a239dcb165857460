"""What a training says at its end."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from smolact.cli import progress
from smolact.cli.eval import EvalConfig
from smolact.cli.train import ProgressLine, env_flags
from smolact.parsing import parse
from smolact.policies.smolvla.configuration_smolvla import SmolVLAConfig
from smolact.training.sections import EnvSection
from smolact.training.tracking import Ended, Prepared


def test_the_command_that_evaluates_names_the_same_environment(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = tmp_path / "my runs" / "3"
    SmolVLAConfig().save_pretrained(checkpoint)
    env = EnvSection(
        type="my_envs:mine/Dot-v0",
        mapping=Path("my maps/dot.yaml"),
        kwargs={"near": 0.1, "tasks": ["a b", "c's"]},
    )
    with ProgressLine(env_flags=env_flags(env)) as line:
        line(Ended(step=3, is_complete=True, checkpoint=checkpoint))
    told = capsys.readouterr().err
    assert "Waited" not in told
    said = told.split("How good is it? ")[1]
    program, command, *flags = shlex.split(said)
    assert (program, command) == ("smolact", "eval")
    again = parse(EvalConfig, flags)
    assert (again.env, again.policy.path) == (env, str(checkpoint))


def test_the_end_says_how_long_a_run_waited_for_data(capsys: pytest.CaptureFixture[str]) -> None:
    for share in (0.02, 0.4):
        with ProgressLine() as line:
            line(Ended(step=3, is_complete=False, checkpoint=None, data_wait=share))
    little, much = (line for line in capsys.readouterr().err.splitlines() if "Waited" in line)
    assert little == "Waited for data 2% of the time."
    assert much.startswith("Waited for data 40% of the time. More --num_workers")
    with ProgressLine() as line:  # processes that share steps read for themselves
        line(Ended(step=3, is_complete=False, checkpoint=None, data_wait=0.4, has_readers=False))
    assert "40% of the time. --dataset.cache=frames would help." in capsys.readouterr().err


def test_what_is_made_ahead_shows_its_rate_and_the_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with ProgressLine() as line:
        for now, done in ((0.0, 10), (4.0, 50), (11.0, 120), (12.0, 130)):
            monkeypatch.setattr(progress.time, "monotonic", lambda now=now: now)
            line(Prepared("keeping frames", done, 240))
        monkeypatch.undo()
    said = capsys.readouterr().err.splitlines()
    assert said == ["keeping frames: 240", "keeping frames: 120 of 240, 10/s, 12 s left"]

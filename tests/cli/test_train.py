"""What a training says at its end."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from smolact.cli.eval import EvalConfig
from smolact.cli.parsing import parse
from smolact.cli.train import ProgressLine, env_flags
from smolact.policies.smolvla.configuration_smolvla import SmolVLAConfig
from smolact.training.sections import EnvSection
from smolact.training.tracking import Ended


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
    said = capsys.readouterr().err.split("How good is it? ")[1]
    program, command, *flags = shlex.split(said)
    assert (program, command) == ("smolact", "eval")
    again = parse(EvalConfig, flags)[0]
    assert (again.env, again.policy.path) == (env, str(checkpoint))

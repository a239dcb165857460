"""`smolact rollout` as a user types it."""

from __future__ import annotations

import io
import logging

import pytest

from smolact.cli.main import main
from tests.evaluation.test_suite import checkpoint

SIM = ["rollout", "--robot.type=sim", "--robot.env=tabletop"]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"--policy.path={checkpoint(tmp_path_factory.mktemp('policy') / 'p', 0)}"


@pytest.mark.parametrize("kind", ["sync", "async", "ensemble"])
def test_a_policy_drives(
    policy: str, kind: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    words = [
        "--policy.device=cpu",
        f"--inference.type={kind}",
        "--duration=1",
        "--episodes=2",
        "--realtime=false",
    ]
    assert main([*SIM, policy, *words]) == 0
    assert "success: 0 of 2" in capsys.readouterr().out
    assert "episode 1: 10 ticks" in caplog.text


def test_in_real_time_it_holds_the_rate_and_instructions_can_change(
    policy: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("sys.stdin", io.StringIO("push the red block to the left zone\n\n"))
    words = ["--policy.device=cpu", "--inference.type=async", "--interactive", "--duration=60"]
    assert main([*SIM, policy, *words]) == 0  # an empty line ends the episode, long before its time
    assert "From the next chunk on: push the red block to the left zone" in caplog.text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rollout", "--policy.path=p"], "needs a robot"),
        (SIM, "Which policy drives?"),
        ([*SIM, "--policy.path=ws://127.0.0.1:9", "--task= "], "--task is empty"),
        ([*SIM, "--policy.path=ws://127.0.0.1:9", "--inference.typ=async"], "Did you mean"),
        (
            [*SIM, "--policy.path=ws://127.0.0.1:9", "--inference.type=async", "--inference.refill=2"],
            "refill=2",
        ),
        ([*SIM, "--policy.path=ws://127.0.0.1:9", "--duration=0"], "--duration=0"),
    ],
)
def test_what_is_wrong_is_told(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert message in capsys.readouterr().err

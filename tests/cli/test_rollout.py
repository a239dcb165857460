"""`smolact rollout` as a user types it."""

from __future__ import annotations

import io
import logging
import shlex
from pathlib import Path
from typing import Any

import pytest

from smolact.cli.corrections import fine_tuning
from smolact.cli.main import main
from smolact.datasets.reader import LeRobotDataset
from smolact.errors import ServerError
from smolact.policies.smolvla.engine import SmolVLAEngine
from smolact.robots.base import RobotFeatures
from smolact.robots.sim import SimRobot
from smolact.runtime.local import LocalPolicy
from tests.evaluation.test_suite import checkpoint
from tests.robots.gate import OPEN

SIM = ["rollout", "--robot.type=sim", "--robot.env=tabletop"]
UNTRAINED = [*SIM, *OPEN]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"--policy.path={checkpoint(tmp_path_factory.mktemp('policy') / 'p', 0)}"


@pytest.mark.parametrize("kind", ["sync", "async", "rtc", "ensemble"])
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
    assert main([*UNTRAINED, policy, *words]) == 0
    assert "success: 0 of 2" in capsys.readouterr().out
    assert "episode 1: 10 ticks" in caplog.text


def test_in_real_time_it_holds_the_rate_and_instructions_can_change(
    policy: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("sys.stdin", io.StringIO("push the red block to the left zone\n\n"))
    words = ["--policy.device=cpu", "--inference.type=async", "--interactive", "--duration=60"]
    assert main([*UNTRAINED, policy, *words]) == 0  # an empty line ends the episode, long before its time
    assert "From the next chunk on: push the red block to the left zone" in caplog.text


def test_what_is_driven_is_kept_and_gone_on_with(
    policy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    root = tmp_path / "d"
    words = [
        *UNTRAINED,
        policy,
        "--policy.device=cpu",
        "--inference.type=rtc",
        "--inference.refill=0.5",
        "--realtime=false",
        "--duration=1",
        "--video=false",
        f"--record-to={root}",
    ]
    assert main([*words, "--episodes=2"]) == 0
    assert f"2 episodes: {root}\nsuccess: 0 of 2" in capsys.readouterr().out
    assert "episode 1: 10 frames" in caplog.text and "chunks" in caplog.text
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "To add 1 more to it, give --resume=true; for a new dataset, another --record-to." in said
    assert main([*words, "--resume=true"]) == 0
    dataset = LeRobotDataset(root)
    assert dataset.meta.episodes.length.tolist() == [10, 10, 10]
    assert len({sample["task"] for sample in dataset}) >= 1
    assert dataset[0]["action"].shape == (2,)


def test_the_expert_corrects_and_the_command_to_learn_from_it_is_told_and_works(
    policy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    root = tmp_path / "fixes"
    words = [*UNTRAINED, policy, "--policy.device=cpu", "--realtime=false", "--duration=4", "--video=false"]
    words += ["--teleop.type=expert", "--interpolation=2"]
    assert main([*words, f"--corrections={root}", "--episodes=2"]) == 0
    said = capsys.readouterr().out
    marks = [bool(sample["intervention"]) for sample in LeRobotDataset(root)]
    assert 0 < sum(marks) < len(marks)
    assert f"corrections: {sum(marks)} of {len(marks)} frames in {root}" in said
    assert "the expert takes over" in caplog.text and "chunks, 1 correction of" in caplog.text
    # In LeRobot's words the same, and more of it.
    named = ["--strategy.type=dagger", f"--dataset.root={root}", "--dataset.num_episodes=1", "--resume=true"]
    named += ["--strategy.record_autonomous=true"]
    assert main([*words, *named]) == 0
    assert LeRobotDataset(root).num_episodes == 3
    command = shlex.split(said.splitlines()[-1])
    path = policy.removeprefix("--policy.path=")
    assert command[:3] == ["smolact", "train", f"--policy.path={path}"]
    assert command[3:] == [f"--dataset.root={root}", "--dataset.corrections_weight=only"]
    quick = ["--steps=1", "--batch_size=2", "--num_workers=0", "--policy.device=cpu", "--report=false"]
    assert main([*command[1:], *quick, f"--output_dir={tmp_path / 'run'}"]) == 0
    # What comes of it knows its data.
    known = fine_tuning(tmp_path / "more", str(tmp_path / "run"))
    assert f"'--dataset.mix={{{root}: 1, {tmp_path / 'more'}: 1}}'" in known


@pytest.mark.parametrize("flag", ["--duration=0.01", "--fps=0.01"])
def test_a_range_is_told_by_the_flag_that_was_typed(
    policy: str, flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--policy.device=cpu", "--realtime=false", f"--record_to={tmp_path / 'driven'}", flag]
    assert main([*UNTRAINED, policy, *words]) == 2
    assert (
        f"{flag}: expected a number" in (said := capsys.readouterr().err)
        and "--dataset." not in said
        and "go on" not in said
    )
    assert not (tmp_path / "driven").exists()


def test_a_lost_server_ends_the_episode_and_what_was_driven_is_kept(
    policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real, asked = LocalPolicy.predict, []

    def lost(self: LocalPolicy, *arguments: Any, **settings: Any) -> Any:
        asked.append(settings)
        if len(asked) > 4:  # the first one warms up
            raise ServerError("The connection is lost.")
        return real(self, *arguments, **settings)

    monkeypatch.setattr(LocalPolicy, "predict", lost)
    root = tmp_path / "d"
    words = ["--policy.device=cpu", "--realtime=false", "--video=false", f"--record-to={root}"]
    assert main([*UNTRAINED, policy, *words, "--policy.n_action_steps=2", "--episodes=3"]) == 1
    said = capsys.readouterr().err
    assert "The connection is lost." in said and "The finished episode is on disk" in said
    assert "smolact rollout" in said and "--resume=true" in said
    assert LeRobotDataset(root).meta.episodes.length.tolist() == [6]


def test_a_policy_that_does_not_fit_is_told_before_anything_moves_or_is_written(
    policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*SIM, policy, "--policy.device=cpu", "--realtime=false", f"--record-to={tmp_path / 'd'}"]
    monkeypatch.setattr(SimRobot, "send_action", lambda self, action: pytest.fail("moved"))
    real = SmolVLAEngine.__init__

    def without(self: SmolVLAEngine, *arguments: Any, **settings: Any) -> None:
        real(self, *arguments, **settings)
        self.takes_leftover = False

    monkeypatch.setattr(SmolVLAEngine, "__init__", without)
    assert main([*words, "--inference.type=rtc"]) == 2
    assert "'smolvla' policy can't draw actions that go on" in capsys.readouterr().err
    monkeypatch.setattr(
        SimRobot,
        "features",
        property(lambda self: RobotFeatures(("x", "y", "z"), {"observation.state": ("x",)}, {})),
    )
    assert main(words) == 1
    said = capsys.readouterr().err
    assert "does not fit the policy in" in said and "observation.image" in said
    assert not (tmp_path / "d").exists()


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
        ([*SIM, "--policy.path=ws://127.0.0.1:9", "--policy.int8"], "the server has the weights"),
        ([*SIM, "--policy.path=ws://127.0.0.1:9", "--policy.fp8"], "--policy.fp8 can't be used with ws:"),
        ([*SIM, "--policy.path=ws://127.0.0.1:9", "--resume"], "--record-to"),
        ([*SIM, "--policy.path=ws://127.0.0.1:9", "--interpolation=0"], "--interpolation=0"),
        ([*SIM, "--policy.path=ws://127.0.0.1:9", "--corrections=d"], "Who corrects the policy?"),
        ([*SIM, "--policy.path=ws://127.0.0.1:9", "--teleop.type=expert"], "--corrections=FOLDER"),
        (
            [*SIM, "--policy.path=ws://127.0.0.1:9", "--strategy.type=dagger"],
            "Where are the corrections kept?",
        ),
        ([*SIM, "--policy.path=ws://127.0.0.1:9", "--dataset.repo_id=me/d"], "--strategy.type=dagger"),
        (
            [
                *SIM,
                "--policy.path=ws://127.0.0.1:9",
                "--strategy.type=dagger",
                "--strategy.record_autonomous=0",
            ],
            "whole episodes are recorded",
        ),
        (
            [
                *SIM,
                "--policy.path=ws://127.0.0.1:9",
                "--teleop.type=expert",
                "--corrections=d",
                "--record-to=e",
            ],
            "--record-to and --corrections can't be used together",
        ),
        (
            [*SIM, "--policy.path=ws://127.0.0.1:9", "--teleop.type=keyboard", "--corrections=d"],
            "no terminal",
        ),
        (
            [
                *SIM,
                "--policy.path=ws://127.0.0.1:9",
                "--inference.type=rtc",
                "--inference.max_guidance_weight=0",
            ],
            "max_guidance_weight=0",
        ),
    ],
)
def test_what_is_wrong_is_told(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert message in capsys.readouterr().err

"""`smolact record` and `smolact replay` as a user types them."""

from __future__ import annotations

from pathlib import Path

import pytest

from smolact.cli.main import main
from smolact.datasets.metadata import LeRobotDatasetMetadata
from smolact.datasets.reader import LeRobotDataset
from tests.evaluation.test_suite import checkpoint
from tests.robots.gate import OPEN

SIM = ["--robot.type=sim", "--robot.env=tabletop"]
QUICK = [
    *SIM,
    "--teleop.type=expert",
    "--dataset.num_episodes=2",
    "--realtime=false",
    "--dataset.vcodec=h264",
]


def test_an_expert_is_recorded_resumed_and_replayed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = f"--dataset.root={tmp_path / 'd'}"
    assert main(["record", *QUICK, root]) == 0
    assert "success: 2 of 2" in capsys.readouterr().out
    assert main(["record", *QUICK, root]) == 2
    assert "--resume=true" in capsys.readouterr().err
    assert main(["record", *QUICK, root, "--resume"]) == 0
    assert LeRobotDatasetMetadata(tmp_path / "d").total_episodes == 4
    capsys.readouterr()
    assert main(["replay", *SIM, root, "--dataset.episode=3", "--dataset.fps=1000"]) == 0
    assert ", success" in capsys.readouterr().out  # the scene is that of the episode
    assert main(["replay", *SIM, root, "--dataset.episode=4"]) == 2
    assert "has 4 episodes, 0 to 3" in capsys.readouterr().err


def test_a_policy_drives_with_the_same_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy = checkpoint(tmp_path / "policy", 0)
    words = [
        *SIM,
        *OPEN,
        f"--policy.path={policy}",
        "--policy.device=cpu",
        "--realtime=false",
        "--dataset.num_episodes=1",
    ]
    task = "push the red block to the left zone"
    root = tmp_path / "d"
    short = ["--dataset.episode_time_s=1", "--dataset.video=false", f"--dataset.single_task={task}"]
    assert main(["record", *words, *short, f"--dataset.root={root}"]) == 0
    assert "success: 0 of 1" in capsys.readouterr().out
    dataset = LeRobotDataset(str(root))
    assert len(dataset) == 10 and dataset[0]["task"] == task


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["record", "--dataset.single_task=Lift."], "needs a robot: --robot.type=NAME. There are: sim"),
        (["replay"], "needs a robot"),
        (["record", *SIM], "Who drives the robot?"),
        (["record", *SIM, "--teleop.type=expert"], "needs a name for the dataset"),
        (["record", *QUICK, "--dataset.root=d", "--dataset.single_task= "], "single_task is empty"),
        (
            ["record", *QUICK, "--dataset.root=d", "--policy.stats_key=a"],
            "--policy.stats_key is for a policy",
        ),
        (["record", *QUICK, "--dataset.root=d", "--check_names=false"], "--check_names is for a policy"),
        (["record", *QUICK, "--dataset.root=d", "--dataset.fps=0"], "--dataset.fps=0"),
        (["record", *QUICK, "--dataset.root=d", "--dataset.push_to_hub=true"], "smolact push"),
        (["record", *QUICK, "--dataset.root=d", "--teleop.typ=x"], "Did you mean"),
        (["record", "--robot.type=sin", "--teleop.type=expert"], "Did you mean 'sim'"),
        (["record", *SIM, "--teleop.type=keyboard", "--dataset.root=d"], "needs a terminal"),
    ],
)
def test_what_is_wrong_is_told(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) != 0
    assert message in " ".join(capsys.readouterr().err.split())

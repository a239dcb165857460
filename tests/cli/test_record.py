"""`smolact record` and `smolact replay` as a user types them."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest

from smolact.cli.main import main
from smolact.datasets.metadata import LeRobotDatasetMetadata
from smolact.datasets.reader import LeRobotDataset
from smolact.errors import RobotError
from smolact.robots.sim import SimRobot
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
    said = capsys.readouterr().err
    assert (
        f"error: {tmp_path / 'd'} holds a dataset already, of 2 episodes. To add 2 more to it, give --resume=true"
        in said
    )
    assert "To go on" not in said and "DatasetWriter" not in said
    assert main(["record", *QUICK, root, "--resume"]) == 0
    assert LeRobotDatasetMetadata(tmp_path / "d").total_episodes == 4
    capsys.readouterr()
    assert main(["replay", *SIM, root, "--dataset.episode=3", "--dataset.fps=1000"]) == 0
    assert ", success" in capsys.readouterr().out  # the scene is that of the episode
    assert main(["replay", *SIM, root, "--dataset.episode=4"]) == 2
    assert "has 4 episodes, 0 to 3" in capsys.readouterr().err


def test_without_a_terminal_the_keyboard_is_refused_before_a_folder_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["record", *SIM, "--teleop.type=keyboard", "--dataset.repo_id=me/push"]) == 2
    said = capsys.readouterr().err
    assert "--teleop.type=keyboard needs a terminal" in said and "Nothing was recorded." in said
    assert list(tmp_path.iterdir()) == []


def fail_at(monkeypatch: pytest.MonkeyPatch, episode: int) -> None:
    """Let the robot be lost as that episode begins."""
    real = SimRobot.reset

    def reset(robot: SimRobot, number: int) -> str | None:
        if number == episode:
            raise RobotError("The cable is out.")
        return real(robot, number)

    monkeypatch.setattr(SimRobot, "reset", reset)


def test_a_recording_that_fails_before_its_first_episode_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["record", *QUICK, f"--dataset.root={tmp_path / 'd'}"]
    with monkeypatch.context() as patch:
        fail_at(patch, 0)
        assert main(words) == 1
    assert capsys.readouterr().err.endswith("error: The cable is out.\nNothing was recorded.\n")
    assert not (tmp_path / "d").exists()
    assert main(words) == 0


def test_what_is_on_disk_is_told_after_the_error_with_the_command_that_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "d"
    words = ["record", *QUICK, f"--dataset.root={root}"]
    with monkeypatch.context() as patch:
        fail_at(patch, 1)
        assert main(words) == 1
    said = capsys.readouterr().err
    assert said.count("The cable is out.") == 1
    kept = f"The cable is out.\nThe finished episode is on disk, in {root}. To go on:\n  smolact record "
    assert kept in said and said.endswith("--resume=true\n")
    assert main([*words, "--resume", "--dataset.fps=3"]) == 2
    assert capsys.readouterr().err.endswith(f"No episode was added to the 1 in {root}.\n")


def test_a_folder_that_holds_something_else_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").touch()
    for resume in ([], ["--resume"]):
        assert main(["record", *QUICK, f"--dataset.root={tmp_path}", *resume]) == 2
        said = capsys.readouterr().err
        assert "is not empty, and a new dataset needs a folder of its own" in said
        assert "DatasetWriter" not in said and "--resume" not in said
    assert [entry.name for entry in tmp_path.iterdir()] == ["notes.txt"]


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


class Rerun(types.ModuleType):
    """A stand-in for the package: it notes what it is called for."""

    def __init__(self) -> None:
        super().__init__("rerun")
        self.calls: list[tuple[str, Any]] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *values, **settings: self.calls.append((name, values or settings))

    def Image(self, image: Any) -> Any:  # noqa: N802
        return types.SimpleNamespace(compress=lambda jpeg_quality: ("jpeg", image.shape))


def test_a_viewer_elsewhere_shows_the_recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rerun = Rerun()
    monkeypatch.setitem(sys.modules, "rerun", rerun)
    monkeypatch.delenv("DISPLAY", raising=False)
    words = ["--display_data=true", "--display_ip=laptop", "--display_compressed_images=true"]
    one = ["--dataset.num_episodes=1", f"--dataset.root={tmp_path / 'd'}"]
    assert main(["record", *QUICK, *one, *words]) == 0
    assert ("connect_grpc", ("rerun+http://laptop:9876/proxy",)) in rerun.calls
    logged = [values for name, values in rerun.calls if name == "log"]
    assert ("observation/image", ("jpeg", (64, 64, 3))) in logged


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
        (
            ["record", *QUICK, "--dataset.root=d", "--display_ip=laptop"],
            "--display_ip has an effect with --display_data only",
        ),
        (
            ["record", *QUICK, "--dataset.root=d", "--display_data=true", "--display_port=9"],
            "--display_port has an effect with --display_ip only",
        ),
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

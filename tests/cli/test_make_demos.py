"""`smolact dataset make-demos` as a user types it."""

from __future__ import annotations

from pathlib import Path

import pytest

from smolact.cli.main import main
from smolact.datasets.inspection import check_dataset
from smolact.datasets.reader import LeRobotDataset

TABLETOP = ["dataset", "make-demos", "--env.type=tabletop", "--env.kwargs={image_size: 32}"]


@pytest.mark.parametrize("video", ["true", "false"])
def test_an_experts_episodes_are_a_whole_dataset(
    tmp_path: Path, video: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "d"
    assert main([*TABLETOP, "--episodes=3", f"--video={video}", f"--output={folder}"]) == 0
    shown = capsys.readouterr().out
    assert f"{folder}: 3 episodes" in shown and "succeeded in 100% (3 of 3" in shown
    assert not check_dataset(folder)
    dataset = LeRobotDataset(str(folder))
    assert dataset.num_episodes == 3 and dataset.meta.info["robot_type"] == "tabletop"
    assert main([*TABLETOP, f"--output={folder}"]) == 2
    assert "not empty" in capsys.readouterr().err


def test_the_same_seed_shows_the_same(tmp_path: Path) -> None:
    actions = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        folder = tmp_path / name
        assert main([*TABLETOP, "--episodes=1", "--video=false", f"--seed={seed}", f"--output={folder}"]) == 0
        actions.append(LeRobotDataset(str(folder)).windows("action", 1).tolist())
    assert actions[0] == actions[1] != actions[2]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--output=d"], "--env.type=tabletop"),
        (["--env.type=tabletop"], "--output=FOLDER"),
        (["--env.type=CartPole-v1", "--output=d"], "no scripted expert"),
        (["--env.type=tabletop", "--output=d", "--episodes=0"], "--episodes=0"),
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
    assert main(["dataset", "make-demos", *words]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())

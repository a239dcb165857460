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
    shown, said = capsys.readouterr()
    first, last = said.splitlines()
    assert first == "3 episodes" and last.startswith("3 of 3 episodes, ")
    assert last.endswith("/s, the expert succeeded in 100%")
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


def test_two_processes_make_what_one_makes(tmp_path: Path) -> None:
    for name in ("1", "2"):
        words = ["--episodes=3", "--video=false", f"--processes={name}", f"--output={tmp_path / name}"]
        assert main([*TABLETOP, *words]) == 0
    one, two = (LeRobotDataset(str(tmp_path / name)) for name in ("1", "2"))
    assert len(one) == len(two)
    for index in range(len(one)):
        for key, value in one[index].items():
            assert (value == two[index][key]) if isinstance(value, str) else value.equal(two[index][key]), key


def test_pushts_dataset_has_the_names_of_lerobots(tmp_path: Path) -> None:
    pytest.importorskip("gym_pusht", reason="needs the extra: pip install '.[pusht]'")
    folder = tmp_path / "d"
    assert main(["dataset", "make-demos", "--env.type=pusht", "--episodes=2", f"--output={folder}"]) == 0
    assert not check_dataset(folder)
    dataset = LeRobotDataset(str(folder))
    shapes = {name: (feature.dtype, feature.shape) for name, feature in dataset.meta.features.items()}
    assert {
        "observation.image": ("video", (96, 96, 3)),
        "observation.state": ("float32", (2,)),
        "action": ("float32", (2,)),
        "next.reward": ("float32", (1,)),
        "next.done": ("bool", (1,)),
        "next.success": ("bool", (1,)),
    }.items() <= shapes.items()
    assert dataset.meta.fps == 10
    last = dataset[len(dataset) - 1]
    assert last["task"] == "Push the T-shaped block onto the T-shaped target."
    assert last["next.success"].item() and last["next.done"].item() and last["next.reward"].item() == 1.0
    assert not dataset[0]["next.done"].item() and 0 <= dataset[0]["next.reward"].item() < 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--output=d"], "--env.type=tabletop"),
        (["--env.type=tabletop"], "--output=FOLDER"),
        (["--env.type=CartPole-v1", "--output=d"], "only for tabletop"),
        (["--env.type=CartPole-v1", "--output=d"], "pusht (gym_pusht/PushT-v0)"),
        (["--env.type=tabletop", "--output=d", "--processes=0"], "--processes=0"),
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

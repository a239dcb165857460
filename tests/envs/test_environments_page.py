"""What docs/environments.md shows works as it stands there."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import gymnasium
import pytest

from smolact.datasets.reader import LeRobotDataset
from smolact.envs.factory import make_env
from smolact.envs.mapping import play_random_episode

PAGE = Path(__file__).parents[2] / "docs" / "environments.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where the page's files lie, and Python finds them."""
    (tmp_path / "my_envs.py").write_text(blocks("python")[0])
    (tmp_path / "dot.yaml").write_text(blocks("yaml")[0])
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    yield tmp_path
    sys.modules.pop("my_envs", None)
    gymnasium.registry.pop("mine/Dot-v0", None)


def test_the_environment_of_the_page_plays_and_its_expert_demonstrates(folder):
    with make_env("my_envs:mine/Dot-v0", mapping="dot.yaml", render=True) as envs:
        play_random_episode(envs[0])
        assert set(envs.features) == {"observation.image", "observation.state", "action"}
        assert envs.render(0).shape == (64, 64, 3)
    exec(blocks("python")[1].replace("50)", "3)"), {})
    dataset = LeRobotDataset("outputs/dot_dataset")
    assert dataset[0]["task"] == "go to the cross"


def test_the_other_piece_of_python_on_the_page_runs(capsys):
    exec(blocks("python")[2], {})
    assert "block" in capsys.readouterr().out

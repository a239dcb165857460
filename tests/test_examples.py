"""The programs in examples/ do what they say."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import gymnasium
import pytest
import torch

import smolact
from smolact.datasets.reader import LeRobotDataset
from smolact.envs.factory import make_env
from smolact.envs.mapping import rehearse

EXAMPLES = Path(__file__).parents[1] / "examples"
DATASET = Path(__file__).parent / "parity/data/dataset_v30"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look there for their annotations
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if (EXAMPLES / f"{name}.py").exists():
            del sys.modules[name]
    gymnasium.registry.pop("mine/Lamp-v0", None)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_each_is_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) < 80


def test_a_loop_of_ones_own_trains_a_checkpoint_that_predicts(tmp_path: Path) -> None:
    losses = example("train_in_a_script").train(str(DATASET), str(tmp_path / "mine"), steps=8, batch_size=4)
    assert sum(losses[4:]) < sum(losses[:4])
    actions = example("load_and_predict").predict(str(tmp_path / "mine"), str(DATASET))
    assert actions.shape == (8, 6) and actions.isfinite().all()
    assert smolact.load_policy(tmp_path / "mine").policy.config.chunk_size == 8


def test_a_step_of_ones_own_is_saved_and_found_again(tmp_path: Path) -> None:
    module = example("processor_step")
    try:
        assert torch.equal(module.main(str(tmp_path)), torch.tensor([[12.0, -8.0, 1.0]]))
    finally:
        from smolact.processors import step

        step._REGISTRY.pop("mine_binary_gripper")


def test_a_policy_of_ones_own_is_evaluated_like_the_others() -> None:
    result = example("own_policy").main(episodes=2, steps=20, trials=2)
    assert (result.n_action_steps, len(result.results)) == (2, 2)


def test_an_environment_of_ones_own_is_shown_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = example("own_environment")
    with make_env("mine/Lamp-v0", render=True) as envs:
        rehearse(envs[0])
        shown = list(module.demonstrations(envs[0], module.LampExpert(), 3))
    assert all(each.success for each in shown)
    module.record_demonstrations(shown, tmp_path / "lamps", fps=10, use_videos=False)
    dataset = LeRobotDataset(tmp_path / "lamps")
    assert dataset.num_episodes == 3 and dataset[0]["task"].endswith(" lamp")

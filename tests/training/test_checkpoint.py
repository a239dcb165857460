"""Checkpoints of a run: LeRobot's layout, whole or not at all, and every kind of damage named."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR

from smolact.errors import CheckpointError, NotFoundError, WriteError
from smolact.policies.configuration import OptimizerPreset, SchedulerPreset
from smolact.training import checkpoint as checkpoints
from smolact.training.checkpoint import Progress, load_training_state, read_progress, save_checkpoint
from smolact.training.optim import make_optimizer, make_scheduler
from smolact.training.random_state import (
    preserve_rng_state,
    random_state,
    restore_random_state,
    seed_everything,
)
from smolact.training.run_folder import find_checkpoint
from tests.training.runs import DATA

LEROBOT = DATA / "lerobot_checkpoint"
ADAMW = OptimizerPreset(1e-2, (0.9, 0.95), 1e-8, 1e-3, 1.0)
SCHEDULE = SchedulerPreset(1e-2, 1e-4, 2, 50)


class Network(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 1))

    def get_optim_params(self) -> Any:
        return self.parameters()


class Run:
    """A network, its optimizer and schedule, trained on noise."""

    def __init__(self, seed: int = 0, width: int = 4) -> None:
        seed_everything(seed)
        self.policy = Network(width)
        self.optimizer = make_optimizer(self.policy, ADAMW)
        self.scheduler = make_scheduler(self.optimizer, SCHEDULE)

    def steps(self, count: int) -> list[float]:
        losses = []
        for _ in range(count):
            loss = (
                (self.policy.layers(torch.randn(5, 3)) - np.random.rand() - random.random()).square().mean()
            )
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.scheduler.step()
            losses.append(loss.item())
        return losses

    def save(self, folder: Path, step: int = 3) -> Path:
        return save_checkpoint(
            folder,
            Progress(step, step * 5, 5),
            policy=self.policy,
            optimizer=self.optimizer,
            scheduler=self.scheduler,
            save_policy=lambda folder: torch.save(self.policy.state_dict(), folder / "weights.pt"),
            settings={"steps": 50},
        )

    def load(self, checkpoint: Path) -> None:
        self.policy.load_state_dict(
            torch.load(checkpoint / "pretrained_model" / "weights.pt", weights_only=True)
        )
        load_training_state(checkpoint, self.optimizer, self.scheduler)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    run = Run()
    run.steps(3)
    return run.save(tmp_path / "run")


def test_a_resumed_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    straight = Run()
    straight.steps(3)
    checkpoint = straight.save(tmp_path / "run")
    expected = straight.steps(7)

    resumed = Run(seed=9)
    resumed.load(checkpoint)
    assert resumed.steps(7) == expected
    assert resumed.scheduler.get_last_lr() == straight.scheduler.get_last_lr()
    for one, other in zip(resumed.policy.parameters(), straight.policy.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_layout_is_lerobots(saved: Path) -> None:
    assert saved.name == "000003"
    assert (saved.parent / "last").readlink() == Path("000003")
    ours = {entry.name for entry in (saved / "training_state").iterdir()}
    assert {entry.name for entry in (LEROBOT / "training_state").iterdir()} <= ours


@pytest.mark.parametrize(
    "name", ["optimizer_param_groups.json", "scheduler_state.json", "training_step.json"]
)
def test_the_files_hold_what_lerobots_hold(saved: Path, name: str) -> None:
    def keys(value: Any) -> set[str]:
        return set(value[0] if isinstance(value, list) else value)

    ours, theirs = (json.loads((folder / "training_state" / name).read_text()) for folder in (saved, LEROBOT))
    # PyTorch's schedulers have written this key since some version after 2.7.
    added_later = {"_is_initial"} - set(LambdaLR(SGD([torch.zeros(1)]), lambda _: 1.0).state_dict())
    assert keys(theirs) - added_later <= keys(ours)


def test_the_random_state_has_lerobots_names_and_shapes(saved: Path) -> None:
    ours, theirs = (
        load_file(folder / "training_state" / "rng_state.safetensors") for folder in (saved, LEROBOT)
    )
    assert {name: tensor.shape for name, tensor in ours.items()} == {
        name: tensor.shape for name, tensor in theirs.items()
    }


def test_lerobots_progress_and_random_state_are_read() -> None:
    assert read_progress(LEROBOT) == Progress(step=4, samples=16, batch_size=4)
    with preserve_rng_state():
        restore_random_state(load_file(LEROBOT / "training_state" / "rng_state.safetensors"))


def test_random_generators_are_put_back() -> None:
    seed_everything(3)
    np.random.standard_normal(1)  # leaves a cached second value behind
    state = random_state()
    drawn = (random.random(), np.random.standard_normal(2).tolist(), torch.rand(2).tolist())
    restore_random_state(state)
    assert drawn == (random.random(), np.random.standard_normal(2).tolist(), torch.rand(2).tolist())


@pytest.mark.parametrize(
    "tail",
    [
        "",
        "checkpoints",
        "checkpoints/last",
        "checkpoints/000003",
        "checkpoints/last/pretrained_model/train_config.json",
    ],
)
def test_a_checkpoint_is_found_from_anywhere_in_its_run(saved: Path, tail: str) -> None:
    (saved / "pretrained_model" / "train_config.json").write_text("{}")
    assert find_checkpoint(saved.parent.parent / tail) == saved.resolve()


def test_a_link_that_leads_nowhere_falls_back_to_the_newest_and_says_so(
    saved: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(saved, saved.parent / "000010")
    (saved.parent / "last").unlink()
    (saved.parent / "last").symlink_to("000099")
    assert find_checkpoint(saved.parent.parent).name == "000010"
    assert "leads nowhere" in caplog.text


def test_no_checkpoint_says_what_is_near(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no checkpoint"):
        find_checkpoint(tmp_path / "nothing" / "here" / "at" / "all")


def test_a_policy_without_training_state_says_how_to_start_from_it(saved: Path) -> None:
    shutil.rmtree(saved / "training_state")
    with pytest.raises(CheckpointError, match=r"--policy\.path="):
        find_checkpoint(saved)


STATE_FILES = (
    "optimizer_state.safetensors",
    "optimizer_param_groups.json",
    "scheduler_state.json",
    "rng_state.safetensors",
    "training_step.json",
)


@pytest.mark.parametrize("name", STATE_FILES)
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "garbage", "other"])
def test_a_damaged_file_is_named(saved: Path, name: str, damage: str) -> None:
    path = saved / "training_state" / name
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        other = (
            b'{"a": 1}'
            if name.endswith("json")
            else (saved / "training_state" / STATE_FILES[0 if "rng" in name else 3]).read_bytes()
        )
        path.write_bytes(
            {"empty": b"", "cut": content[: len(content) // 2], "garbage": b"\xff" * 99, "other": other}[
                damage
            ]
        )
    run = Run()
    with pytest.raises(CheckpointError) as caught:
        read_progress(saved)
        run.load(saved)
    assert str(path) in str(caught.value)


def test_the_state_of_another_policy_is_refused(saved: Path) -> None:
    other = Run(width=5)
    with pytest.raises(CheckpointError, match="another policy"):
        load_training_state(saved, other.optimizer, other.scheduler)
    frozen = Run()
    frozen.optimizer.param_groups[0]["params"].pop()
    with pytest.raises(CheckpointError, match="freezing flags"):
        load_training_state(saved, frozen.optimizer, frozen.scheduler)


def test_weights_that_are_not_finite_are_never_saved(saved: Path) -> None:
    run = Run()
    with torch.no_grad():
        run.policy.layers[0].weight[0, 0] = float("nan")
    with pytest.raises(CheckpointError, match=r"layers\.0\.weight"):
        run.save(saved.parent.parent, step=4)
    assert (saved.parent / "last").readlink() == Path("000003")
    assert not (saved.parent / "000004").exists()


def test_a_save_that_fails_leaves_the_former_checkpoint_as_last(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "_save_optimizer", full)
    with pytest.raises(WriteError, match="full"):
        Run().save(saved.parent.parent, step=4)
    assert sorted(entry.name for entry in saved.parent.iterdir()) == ["000003", "last"]
    assert find_checkpoint(saved.parent.parent) == saved.resolve()


def test_a_step_that_was_saved_by_an_earlier_run_is_replaced(saved: Path) -> None:
    run = Run(seed=5)
    run.steps(2)
    run.save(saved.parent.parent, step=3)
    again = Run()
    again.load(saved)
    assert torch.equal(again.policy.layers[0].weight, run.policy.layers[0].weight)

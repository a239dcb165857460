"""Optimizer and schedule: the reference's numbers, and where ours differ on purpose."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import torch
from torch import nn

from smolact.errors import ConfigError
from smolact.policies.configuration import SchedulerPreset
from smolact.policies.smolvla.configuration_smolvla import SmolVLAConfig
from smolact.training.optim import (
    fit_schedule,
    make_optimizer,
    make_scheduler,
    optimization_of,
    parameter_groups,
    rate_factor,
)
from tests.policies.tiny import tiny_policy
from tests.training.runs import DATA, settings

PARITY = json.loads((DATA / "lr_schedule.json").read_text())
BY_HAND = "--policy.scheduler_decay_steps=30000"


class OneLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def get_optim_params(self) -> Any:
        return self.parameters()


def schedule_of(case: dict[str, Any]) -> SchedulerPreset:
    return SchedulerPreset(case["peak"], case["final"], case["warmup"], case["decay_steps"])


@pytest.mark.parametrize(
    ("name", "keep"), [("defaults_30000", False), ("short_4000", False), ("long_100000", True)]
)
def test_rates_are_the_references(name: str, keep: bool) -> None:
    case = PARITY[name]
    schedule = fit_schedule(schedule_of(case), case["total_steps"], keep_decay=keep)
    for step, rate in case["lr_used_at_step"].items():
        assert case["peak"] * rate_factor(schedule, int(step)) == pytest.approx(rate, rel=1e-12)


def test_a_long_run_stretches_the_schedule_unless_decay_steps_were_set() -> None:
    policy = SmolVLAConfig()
    config = settings("--policy.type=smolvla", "--steps=100000")
    _, stretched = optimization_of(policy, config)
    assert (stretched.num_warmup_steps, stretched.num_decay_steps) == (1000, 100_000)
    config = settings("--policy.type=smolvla", "--steps=100000", BY_HAND)
    _, kept = optimization_of(policy, config)
    assert (kept.num_warmup_steps, kept.num_decay_steps) == (1000, 30_000)


def test_decay_steps_set_by_hand_hold_in_a_short_run_too() -> None:
    config = settings("--policy.type=smolvla", "--steps=4000", BY_HAND)
    _, schedule = optimization_of(SmolVLAConfig(), config)
    assert (schedule.num_warmup_steps, schedule.num_decay_steps) == (1000, 30_000)


def test_warm_up_set_by_hand_is_not_shortened() -> None:
    config = settings("--policy.type=smolvla", "--steps=3000", "--policy.scheduler_warmup_steps=500")
    policy = SmolVLAConfig(**config.policy.settings)
    _, schedule = optimization_of(policy, config)
    assert (schedule.num_warmup_steps, schedule.num_decay_steps) == (500, 3000)


@pytest.mark.parametrize("warmup", [0, 1, 7])
def test_the_rate_is_positive_at_every_step_and_ends_at_its_end(warmup: int) -> None:
    schedule = SchedulerPreset(1e-3, 1e-5, warmup, 20)
    rates = [rate_factor(schedule, step) for step in range(40)]
    assert min(rates) > 0
    assert rates[20:] == [pytest.approx(1e-2)] * 20


def test_each_group_follows_the_schedule_from_its_own_peak() -> None:
    policy = OneLayer()
    groups = [{"params": [policy.layer.weight], "lr": 1.0}, {"params": [policy.layer.bias], "lr": 0.1}]
    optimizer = torch.optim.AdamW(groups)
    scheduler = make_scheduler(optimizer, SchedulerPreset(1.0, 0.0, 0, 10))
    for _ in range(5):
        optimizer.step()
        scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == [pytest.approx(0.5), pytest.approx(0.05)]


def test_the_preset_decides_and_a_flag_that_it_overrides_is_refused() -> None:
    config = settings("--policy.type=smolvla", "--policy.optimizer_lr=5e-4")
    optimizer, schedule = optimization_of(SmolVLAConfig(**config.policy.settings), config)
    assert (optimizer.lr, schedule.peak_lr) == (5e-4, 5e-4)
    config = settings("--policy.type=smolvla", "--optimizer.lr=5e-4")
    with pytest.raises(ConfigError, match=r"--optimizer.lr=0.0005 has no effect"):
        optimization_of(SmolVLAConfig(), config)


def test_without_the_preset_the_sections_decide_over_the_policys_values() -> None:
    config = settings(
        "--policy.type=smolvla",
        "--use_policy_training_preset=false",
        "--optimizer.lr=5e-4",
        "--optimizer.betas=[0.8, 0.9]",
        "--scheduler.num_decay_steps=50",
        "--steps=100",
    )
    optimizer, schedule = optimization_of(SmolVLAConfig(), config)
    assert (optimizer.lr, optimizer.betas, optimizer.grad_clip_norm) == (5e-4, (0.8, 0.9), 10)
    assert (schedule.peak_lr, schedule.num_decay_steps) == (5e-4, 50)


@pytest.mark.parametrize(
    "flag",
    ["optimizer_lr=0", "scheduler_decay_lr=-1", "optimizer_weight_decay=-1", "optimizer_betas=[0.9, 1]"],
)
def test_values_that_can_not_work_are_refused(flag: str) -> None:
    config = settings("--policy.type=smolvla", f"--policy.{flag}")
    with pytest.raises(ConfigError):
        optimization_of(SmolVLAConfig(**config.policy.settings), config)


def test_a_policy_that_is_all_frozen_is_refused() -> None:
    policy = OneLayer().requires_grad_(False)
    with pytest.raises(ConfigError, match="Nothing trains"):
        make_optimizer(policy, SmolVLAConfig().get_optimizer_preset())


GROUPS = {"vision_model": 0.1, "connector": 2.0, "model.encoder.layers.0": 0.01}


def test_multipliers_make_named_groups_with_shares_of_the_rate() -> None:
    policy = tiny_policy(train_expert_only=False, freeze_vision_encoder=False)
    settings_ = policy.config.get_optimizer_preset()
    optimizer = make_optimizer(policy, settings_, GROUPS)
    rates = {group["name"]: group["lr"] / settings_.lr for group in optimizer.param_groups}
    assert rates == pytest.approx({"base": 1.0, **GROUPS})
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(policy.parameters()))
    names = {parameter: name for name, parameter in policy.named_parameters()}
    for group in optimizer.param_groups[1:]:
        assert all(group["name"] in names[parameter] for parameter in group["params"])
    assert not any("encoder.layers.0" in names[p] for p in optimizer.param_groups[1]["params"])
    make_scheduler(optimizer, SchedulerPreset(settings_.lr, 0.0, 0, 10))
    json.dumps(optimizer.state_dict()["param_groups"], allow_nan=False)  # as checkpoints keep them


def test_a_group_moves_by_its_share() -> None:
    torch.manual_seed(0)
    policy = OneLayer()
    before = {name: parameter.detach().clone() for name, parameter in policy.named_parameters()}
    preset = dataclasses.replace(SmolVLAConfig().get_optimizer_preset(), weight_decay=0.0)
    optimizer = make_optimizer(policy, preset, {"bias": 0.25})
    policy.layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    moved = {
        name: (parameter.detach() - before[name]).abs().mean().item()
        for name, parameter in policy.named_parameters()
    }
    assert moved["layer.bias"] / moved["layer.weight"] == pytest.approx(0.25, rel=1e-2)


def test_groups_of_a_policy_are_split_and_keep_their_settings() -> None:
    policy = OneLayer()
    given = [{"params": [policy.layer.weight], "lr": 1.0, "name": "w"}, {"params": [policy.layer.bias]}]
    groups = parameter_groups(policy, given, 0.5, {"weight": 0.1})
    assert [(group["name"], group["lr"]) for group in groups] == [("w/weight", 0.1), ("base", 0.5)]


def test_without_multipliers_there_is_one_group_as_in_lerobot() -> None:
    policy = OneLayer()
    (group,) = make_optimizer(policy, SmolVLAConfig().get_optimizer_preset(), {}).param_groups
    assert "name" not in group
    assert len(group["params"]) == 2


@pytest.mark.parametrize(
    ("multipliers", "message"),
    [
        (
            {"vison_model": 0.1},
            r"no parameter .* has 'vison_model' .* Did you mean 'vision_model'\? Parts are: model, ",
        ),
        ({"": 0.1}, "no parameter"),
        (
            {"vision_model": 0.1},
            r"has no effect, .* is frozen\. Let it train \(--policy.train_expert_only=false",
        ),
        ({"lm_expert": 0.0}, r"factor 0\.0, which must be a number above 0"),
        ({"lm_expert": float("nan")}, "factor nan"),
    ],
)
def test_multipliers_that_can_not_work_are_refused(multipliers: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_optimizer(tiny_policy(), SmolVLAConfig().get_optimizer_preset(), multipliers)

"""Optimizer and schedule: the reference's numbers, and where ours differ on purpose."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import nn

from smolact.errors import ConfigError
from smolact.policies.configuration import SchedulerPreset
from smolact.policies.smolvla.configuration_smolvla import SmolVLAConfig
from smolact.training.optim import fit_schedule, make_optimizer, make_scheduler, optimization_of, rate_factor
from tests.training.runs import DATA, settings

PARITY = json.loads((DATA / "lr_schedule.json").read_text())
BY_HAND = {"policy.scheduler_decay_steps": "--policy.scheduler_decay_steps=30000"}


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
    config, explicit = settings("--policy.type=smolvla", "--steps=100000")
    _, stretched = optimization_of(policy, config, explicit)
    assert (stretched.num_warmup_steps, stretched.num_decay_steps) == (1000, 100_000)
    _, kept = optimization_of(policy, config, explicit | BY_HAND)
    assert (kept.num_warmup_steps, kept.num_decay_steps) == (1000, 30_000)


def test_decay_steps_set_by_hand_hold_in_a_short_run_too() -> None:
    config, explicit = settings("--policy.type=smolvla", "--steps=4000")
    _, schedule = optimization_of(SmolVLAConfig(), config, explicit | BY_HAND)
    assert (schedule.num_warmup_steps, schedule.num_decay_steps) == (1000, 30_000)


def test_warm_up_set_by_hand_is_not_shortened() -> None:
    config, explicit = settings(
        "--policy.type=smolvla", "--steps=3000", "--policy.scheduler_warmup_steps=500"
    )
    policy = SmolVLAConfig(**config.policy.settings)
    _, schedule = optimization_of(policy, config, explicit)
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
    config, explicit = settings("--policy.type=smolvla", "--policy.optimizer_lr=5e-4")
    optimizer, schedule = optimization_of(SmolVLAConfig(**config.policy.settings), config, explicit)
    assert (optimizer.lr, schedule.peak_lr) == (5e-4, 5e-4)
    config, explicit = settings("--policy.type=smolvla", "--optimizer.lr=5e-4")
    with pytest.raises(ConfigError, match=r"--optimizer.lr=5e-4 has no effect"):
        optimization_of(SmolVLAConfig(), config, explicit)


def test_without_the_preset_the_sections_decide_over_the_policys_values() -> None:
    config, explicit = settings(
        "--policy.type=smolvla",
        "--use_policy_training_preset=false",
        "--optimizer.lr=5e-4",
        "--optimizer.betas=[0.8, 0.9]",
        "--scheduler.num_decay_steps=50",
        "--steps=100",
    )
    optimizer, schedule = optimization_of(SmolVLAConfig(), config, explicit)
    assert (optimizer.lr, optimizer.betas, optimizer.grad_clip_norm) == (5e-4, (0.8, 0.9), 10)
    assert (schedule.peak_lr, schedule.num_decay_steps) == (5e-4, 50)


@pytest.mark.parametrize(
    "flag",
    ["optimizer_lr=0", "scheduler_decay_lr=-1", "optimizer_weight_decay=-1", "optimizer_betas=[0.9, 1]"],
)
def test_values_that_can_not_work_are_refused(flag: str) -> None:
    config, explicit = settings("--policy.type=smolvla", f"--policy.{flag}")
    with pytest.raises(ConfigError):
        optimization_of(SmolVLAConfig(**config.policy.settings), config, explicit)


def test_a_policy_that_is_all_frozen_is_refused() -> None:
    policy = OneLayer().requires_grad_(False)
    with pytest.raises(ConfigError, match="Nothing trains"):
        make_optimizer(policy, SmolVLAConfig().get_optimizer_preset())

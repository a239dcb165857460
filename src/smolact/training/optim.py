"""AdamW, and a learning rate with a linear warm-up and a cosine decay.

The schedule is that of Physical Intelligence's π0 in LeRobot (`lerobot/optim/schedulers.py`): the cosine counts from
step 0, so the rate drops slightly where the warm-up ends.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from smolact.errors import ConfigError, did_you_mean
from smolact.policies.configuration import OptimizerPreset, SchedulerPreset
from smolact.training.config import TrainConfig
from smolact.training.sections import OptimizerSection, SchedulerSection

logger = logging.getLogger(__name__)

BASE_GROUP = "base"
"""The group of parameters without a multiplier."""


def rate_factor(schedule: SchedulerPreset, step: float) -> float:
    """Return the learning rate of `step` (from 0) as a share of the peak."""
    if step < schedule.num_warmup_steps:
        start = 1 / (schedule.num_warmup_steps + 1)
        return start + (1 - start) * max(step, 0) / schedule.num_warmup_steps
    final = schedule.decay_lr / schedule.peak_lr
    progress = min(step, schedule.num_decay_steps) / schedule.num_decay_steps
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))


def fit_schedule(
    schedule: SchedulerPreset, steps: int, *, keep_decay: bool = False, keep_warmup: bool = False
) -> SchedulerPreset:
    """Return the schedule of a run of `steps` steps, which ends with the run.

    A shorter run shortens the warm-up by the same factor, a longer one does not change it. `keep_decay` leaves the whole
    schedule unchanged, `keep_warmup` its warm-up, which were set by hand.
    """
    if keep_decay:
        return schedule
    share = min(1.0, steps / schedule.num_decay_steps)
    warmup = schedule.num_warmup_steps if keep_warmup else int(schedule.num_warmup_steps * share)
    return dataclasses.replace(schedule, num_warmup_steps=warmup, num_decay_steps=steps)


def optimization_of(policy_config: Any, config: TrainConfig) -> tuple[OptimizerPreset, SchedulerPreset]:
    """Return optimizer and schedule of a run: the policy's preset, or the values of `--optimizer.…` and `--scheduler.…`.

    Raises:
        ConfigError: the preset overrides a setting, or a rate or number of steps is invalid.
    """
    optimizer: OptimizerPreset = policy_config.get_optimizer_preset()
    schedule: SchedulerPreset = policy_config.get_scheduler_preset()
    given_optimizer = _given(config.optimizer, OptimizerPreset)
    given_schedule = _given(config.scheduler, SchedulerPreset)
    policy = config.policy.settings
    has_decay, has_warmup = "scheduler_decay_steps" in policy, "scheduler_warmup_steps" in policy
    if not config.use_policy_training_preset:
        optimizer = dataclasses.replace(optimizer, **given_optimizer)
        schedule = dataclasses.replace(schedule, **{"peak_lr": optimizer.lr} | given_schedule)
        has_decay |= "num_decay_steps" in given_schedule
        has_warmup |= "num_warmup_steps" in given_schedule
    elif given_optimizer or given_schedule:
        section, given = ("optimizer", given_optimizer) if given_optimizer else ("scheduler", given_schedule)
        name, value = next(iter(given.items()))
        raise ConfigError(
            f"--{section}.{name}={value} has no effect: optimizer and schedule come from the policy's configuration. Set "
            "--policy.optimizer_lr and its like, or add --use_policy_training_preset=false."
        )
    _check(optimizer, schedule)
    if config.train_minutes is not None:  # only the ratios of its steps matter
        return optimizer, schedule
    fitted = fit_schedule(schedule, config.n_steps, keep_decay=has_decay, keep_warmup=has_warmup)
    if fitted.num_decay_steps < config.n_steps:
        logger.warning(
            "The learning rate reaches its end at step %d of %d and stays there, since the decay steps were set.",
            fitted.num_decay_steps,
            config.n_steps,
        )
    return optimizer, fitted


def note_new_schedule(before: SchedulerPreset | None, now: SchedulerPreset, step: int) -> None:
    """Log a warning if a run that resumes at `step` has another schedule than before."""
    if before is None or before == now:
        return
    rates = [schedule.peak_lr * rate_factor(schedule, step) for schedule in (before, now)]
    logger.warning(
        "The schedule is not the one that the run had: it now warms up for %d steps and ends at step %d, not %d and %d, so that "
        "the learning rate goes on at %.2g instead of %.2g. To keep it, add --policy.scheduler_warmup_steps=%d "
        "--policy.scheduler_decay_steps=%d.",
        now.num_warmup_steps,
        now.num_decay_steps,
        before.num_warmup_steps,
        before.num_decay_steps,
        rates[1],
        rates[0],
        before.num_warmup_steps,
        before.num_decay_steps,
    )


def make_optimizer(
    policy: nn.Module, settings: OptimizerPreset, multipliers: Mapping[str, float] | None = None
) -> Optimizer:
    """Return AdamW over `policy.get_optim_params()`: parameters, or groups of them with their own rates.

    Args:
        multipliers: `--lr_multipliers`, see `parameter_groups`. Without any there is one group, as in LeRobot.

    Raises:
        ConfigError: nothing trains, or a multiplier is invalid.
    """
    if not any(parameter.requires_grad for parameter in policy.parameters()):
        raise ConfigError(
            "Nothing trains: every parameter is frozen. Set --policy.train_expert_only=false, "
            "--policy.freeze_vision_encoder=false or --policy.train_state_proj=true."
        )
    parameters: list[Any] = list(policy.get_optim_params())  # type: ignore[operator]
    return AdamW(
        parameter_groups(policy, parameters, settings.lr, multipliers) if multipliers else parameters,
        lr=settings.lr,
        betas=settings.betas,
        eps=settings.eps,
        weight_decay=settings.weight_decay,
        fused=True,
    )


def parameter_groups(
    policy: nn.Module, parameters: Sequence[Any], rate: float, multipliers: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Return parameters in groups whose learning rates are multiples of `rate`.

    A parameter belongs to the longest pattern that its name contains. Parameters without a pattern come first, as the group
    `base`; then a group for each pattern, in their order.

    Args:
        parameters: parameters, or dictionaries that are groups already.
        multipliers: from pattern to factor, above 0.

    Returns:
        groups as torch's optimizers take them, each with its `name`.

    Raises:
        ConfigError: a factor is invalid; a pattern is in no name, or all of its parameters are frozen.
    """
    names = {parameter: name for name, parameter in policy.named_parameters()}
    _check_multipliers(names, multipliers)
    groups: list[dict[str, Any]] = []
    input_groups: list[dict[str, Any]] = (
        [dict(group) for group in parameters]
        if isinstance(parameters[0], Mapping)
        else [{"params": parameters}]
    )
    for group in input_groups:
        parts: dict[str, list[nn.Parameter]] = {BASE_GROUP: [], **{pattern: [] for pattern in multipliers}}
        for parameter in group["params"]:
            parts[_pattern_of(names[parameter], multipliers)].append(parameter)
        groups += [
            {
                **group,
                "params": members,
                "lr": group.get("lr", rate) * multipliers.get(pattern, 1.0),
                "name": "/".join(filter(None, (group.get("name"), pattern))),
            }
            for pattern, members in parts.items()
            if members
        ]
    return groups


def _pattern_of(name: str, patterns: Iterable[str]) -> str:
    return max((pattern for pattern in patterns if pattern in name), key=len, default=BASE_GROUP)


def _check_multipliers(names: Mapping[nn.Parameter, str], multipliers: Mapping[str, float]) -> None:
    for pattern, factor in multipliers.items():
        if not (0 < factor < math.inf):
            raise ConfigError(
                f"--lr_multipliers: '{pattern}' has the factor {factor}, which must be a number above 0. A part is frozen "
                "with flags such as --policy.freeze_vision_encoder=true."
            )
        matching = [parameter for parameter, name in names.items() if pattern and pattern in name]
        if not matching:
            parts = [part for name in names.values() for part in name.split(".")[:-1] if not part.isdigit()]
            known = list(dict.fromkeys(parts))
            raise ConfigError(
                f"--lr_multipliers: no parameter of this policy has '{pattern}' in its name."
                f"{did_you_mean(pattern, known)} Parts are: {', '.join(known)}."
            )
        if not any(parameter.requires_grad for parameter in matching):
            raise ConfigError(
                f"--lr_multipliers: '{pattern}' has no effect, since every parameter with it in its name is frozen. Let it "
                "train (--policy.train_expert_only=false, --policy.freeze_vision_encoder=false), or drop it."
            )


def make_scheduler(
    optimizer: Optimizer, schedule: SchedulerPreset, share: Callable[[], float] | None = None
) -> LambdaLR:
    """Return the schedule for every group of `optimizer`, relative to the group's peak.

    Args:
        share: spent share of a timed run, from 0 to 1, which then replaces the step.
    """
    if share is None:
        return LambdaLR(optimizer, partial(rate_factor, schedule))
    return LambdaLR(optimizer, lambda _step: rate_factor(schedule, share() * schedule.num_decay_steps))


def _given(section: OptimizerSection | SchedulerSection, preset: type) -> dict[str, Any]:
    names = (field.name for field in dataclasses.fields(preset))
    return {name: value for name in names if (value := getattr(section, name)) is not None}


def _check(optimizer: OptimizerPreset, schedule: SchedulerPreset) -> None:
    for name, value, least in (
        ("learning rate", optimizer.lr, 0.0),
        ("peak learning rate", schedule.peak_lr, 0.0),
        ("number of decay steps", schedule.num_decay_steps, 0),
    ):
        if value <= least:
            raise ConfigError(
                f"The {name} is {value}: it must be above 0. Set --policy.optimizer_lr or its like."
            )
    for name, value in (
        ("final learning rate", schedule.decay_lr),
        ("number of warm-up steps", schedule.num_warmup_steps),
        ("weight decay", optimizer.weight_decay),
        ("gradient norm to clip at", optimizer.grad_clip_norm),
    ):
        if value < 0:
            raise ConfigError(f"The {name} is {value}: it must be 0 or more.")
    if not all(0 <= beta < 1 for beta in optimizer.betas):
        raise ConfigError(f"AdamW's betas are {optimizer.betas}: each must be at least 0 and below 1.")

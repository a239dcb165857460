"""Several noise draws a sample: the mean of their losses, with the prefix run once."""

from __future__ import annotations

import pytest
import torch

from smolact.errors import ConfigError
from smolact.training.data import RepeatedNoise
from tests.policies.tiny import tiny_batch, tiny_noise, tiny_policy
from tests.training.runs import settings


def test_the_loss_of_several_draws_is_the_mean_of_theirs() -> None:
    policy, batch = tiny_policy(), tiny_batch()
    noises = [tiny_noise(seed=seed) for seed in (2, 3, 4)]
    times = [torch.tensor([0.2, 0.9]), torch.tensor([0.5, 0.1]), torch.tensor([1.0, 0.7])]
    apart = [policy(batch, noise, time)[0] for noise, time in zip(noises, times, strict=True)]
    together, _ = policy(batch, torch.stack(noises, 1), torch.stack(times, 1))
    assert together.item() == pytest.approx(torch.stack(apart).mean().item(), rel=1e-5)


def test_several_draws_begin_with_the_one_that_a_single_draw_makes() -> None:
    draws = tiny_policy().training_draws
    one = draws(torch.Generator().manual_seed(0))
    three = RepeatedNoise(draws, 3)(torch.Generator().manual_seed(0))
    assert three["noise"].shape == (3, *one["noise"].shape)
    assert three["time"].shape == (3,)
    assert torch.equal(three["noise"][0], one["noise"])
    with pytest.raises(ConfigError, match="--noise_draws=0"):
        settings("--noise_draws=0")

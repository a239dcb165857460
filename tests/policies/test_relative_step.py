"""Actions relative to the state, scaled by how far they can be from it."""

from __future__ import annotations

import pytest
import torch

from smolact.errors import ConfigError
from smolact.policies.smolvla.configuration_smolvla import SmolVLAConfig
from smolact.types import FeatureType, PolicyFeature
from tests.policies.tiny import tiny_batch, tiny_config, tiny_noise, tiny_policy

STEP = 0.1


def test_the_loss_is_that_of_the_relative_actions() -> None:
    batch, noise, time = tiny_batch(), tiny_noise(), torch.tensor([0.2, 0.8])
    reach = STEP * torch.arange(1, 9)[:, None]
    relative = (batch["action"] - batch["observation.state"][:, None]) / reach
    expected, _ = tiny_policy()({**batch, "action": relative}, noise, time)
    found, _ = tiny_policy(relative_step=STEP)(batch, noise, time)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_predicted_actions_are_absolute_again() -> None:
    batch, noise = tiny_batch(), tiny_noise()
    reach = STEP * torch.arange(1, 9)[:, None]
    relative = tiny_policy().predict_action_chunk(batch, noise)
    absolute = tiny_policy(relative_step=STEP).predict_action_chunk(batch, noise)
    torch.testing.assert_close(absolute, batch["observation.state"][:, None] + reach * relative)


def test_the_setting_is_in_the_file_only_where_it_is_used() -> None:
    assert "relative_step" not in tiny_config().to_dict()
    config = tiny_config(relative_step=STEP)
    assert SmolVLAConfig.from_dict(config.to_dict()).relative_step == STEP


def test_a_state_that_is_shorter_than_the_action_is_refused() -> None:
    wide = {"action": PolicyFeature(FeatureType.ACTION, (7,))}
    policy = tiny_policy(relative_step=STEP, output_features=wide)
    with pytest.raises(ConfigError, match=r"--policy\.relative_step=0"):
        policy.predict_action_chunk(tiny_batch(), tiny_noise())
    with pytest.raises(ConfigError, match=r"relative_step=-1.0: expected a finite number, 0 to"):
        tiny_config(relative_step=-1.0)

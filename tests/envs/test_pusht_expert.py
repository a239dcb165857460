"""PushT's expert: on the environment's physics without gym-pusht, and in gym-pusht where that is installed."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest

from smolact.envs.demonstrations import ActionNoise, demonstrations
from smolact.envs.experts import expert_for
from smolact.envs.factory import PUSHT, make_env
from smolact.envs.pusht_expert import LEAD, PushTExpert
from smolact.errors import ConfigError
from tests.envs.table import Table

STATES = {"obs_type": "environment_state_agent_pos"}


@pytest.mark.parametrize("seed", range(2))
def test_it_brings_the_tee_home(seed):
    random = np.random.default_rng(seed)
    table = Table([*random.uniform(150, 350, 2), random.uniform(-np.pi, np.pi)], random.uniform(50, 450, 2))
    for _ in range(300):
        disc = np.array([*table.agent.position])
        action = PushTExpert().act(table)
        assert np.hypot(*(action - disc)) <= LEAD + 1e-3
        assert (action >= 0).all() and (action <= 512).all()
        table.step(action)
        off = table.off_by()
        if off.pixels < 2 and off.radians < 0.02:
            return
    pytest.fail(f"still {off}")


def test_planning_changes_nothing():
    table, same = (Table((200, 300, 2.0), (400, 100)) for _ in range(2))
    actions = []
    for _ in range(30):
        actions.append(PushTExpert().act(table))
        PushTExpert().act(table)
        table.step(actions[-1])
    for action in actions:
        same.step(action)
    np.testing.assert_array_equal(table.state, same.state)


def test_another_environment_is_refused():
    with pytest.raises(ConfigError, match="PushT's expert can't act in"):
        PushTExpert().act(gymnasium.make("CartPole-v1"))


class TestInGymPusht:
    @pytest.fixture(autouse=True)
    def _installed(self):
        pytest.importorskip("gym_pusht", reason="needs the extra: pip install '.[pusht]'")

    @pytest.mark.parametrize("noise", [None, ActionNoise()])
    def test_it_covers_the_target(self, noise):
        with make_env("pusht", **STATES) as envs:
            made = list(demonstrations(envs[0], expert_for(PUSHT.id), 2, noise=noise, only_successes=False))
        assert all(episode.success for episode in made)
        assert np.mean([len(episode) for episode in made]) < 250

    def test_the_same_actions_without_planning_give_the_same_episode(self):
        with make_env("pusht", **STATES) as envs:
            episode = next(demonstrations(envs[0], expert_for(PUSHT.id), 1))
            seen, _ = envs[0].reset(seed=episode.seed)
            for step, action in enumerate(episode.frames["action"]):
                for key, value in seen.items():
                    np.testing.assert_array_equal(value, episode.frames[key][step])
                seen, reward, *_ = envs[0].step(action)
                assert reward == pytest.approx(float(episode.frames["next.reward"][step, 0]))

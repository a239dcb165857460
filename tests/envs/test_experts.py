from __future__ import annotations

import numpy as np
import pytest

from smolact.envs.demonstrations import ActionNoise, demonstrations
from smolact.envs.experts import expert_for
from smolact.envs.factory import make_env
from smolact.envs.tabletop import TABLETOP_ID
from smolact.envs.tabletop_scene import MAX_STEP
from smolact.errors import ConfigError

FAST = {"obs_type": "environment_state_agent_pos"}


@pytest.mark.parametrize(("kind", "most_steps"), [("reach", 13), ("push", 31)])
@pytest.mark.parametrize("noise", [None, ActionNoise()])
def test_the_expert_succeeds_and_takes_no_detours(kind, most_steps, noise):
    env = make_env("tabletop", tasks=(kind,), combinations="all", **FAST)[0]
    made = list(demonstrations(env, expert_for(TABLETOP_ID), 40, noise=noise, only_successes=False))
    assert sum(episode.success for episode in made) >= 39
    assert np.mean([len(episode) for episode in made]) < most_steps


def test_an_expert_that_nobody_wrote_is_an_error():
    with pytest.raises(ConfigError, match=TABLETOP_ID):
        expert_for("CartPole-v1")


def test_a_demonstration_has_what_a_dataset_needs():
    env = make_env("tabletop")[0]
    episode = next(iter(demonstrations(env, expert_for(TABLETOP_ID), 1, noise=ActionNoise())))
    steps = len(episode)
    shapes = {key: (values.shape, values.dtype) for key, values in episode.frames.items()}
    assert shapes == {
        "observation.image": ((steps, 64, 64, 3), np.uint8),
        "observation.state": ((steps, 2), np.float32),
        "action": ((steps, 2), np.float32),
        "next.reward": ((steps, 1), np.float32),
        "next.done": ((steps, 1), np.bool_),
        "next.success": ((steps, 1), np.bool_),
    }
    assert episode.frames["next.done"].ravel().tolist() == [False] * (steps - 1) + [True]
    assert episode.frames["next.success"][-1] and episode.frames["next.reward"][-1] == 1
    assert steps > 2
    assert episode.success
    assert "block" in episode.task


def test_demonstrations_repeat_with_their_seed_and_differ_with_another():
    def tasks_and_actions(seed):
        env = make_env("tabletop", **FAST)[0]
        made = demonstrations(env, expert_for(TABLETOP_ID), 3, seed=seed, noise=ActionNoise())
        return [(episode.task, episode.frames["action"].tobytes()) for episode in made]

    assert tasks_and_actions(0) == tasks_and_actions(0)
    assert not set(tasks_and_actions(0)) & set(tasks_and_actions(1))


def test_the_recorded_action_is_the_expert_s_and_not_the_disturbed_one():
    """A clean action is at most one step from the state it was recorded with; a kicked one is not."""
    env = make_env("tabletop", **FAST)[0]
    noise = ActionNoise(std=0.02, kick_probability=0.2, kick_std=0.2)
    for episode in demonstrations(env, expert_for(TABLETOP_ID), 5, noise=noise):
        wanted = episode.frames["action"] - episode.frames["observation.state"]
        assert np.linalg.norm(wanted, axis=1).max() <= MAX_STEP + 1e-6
        moved = np.diff(episode.frames["observation.state"], axis=0)
        assert np.abs(moved - wanted[:-1]).max() > 0.01  # but the pusher did not go there


def test_a_kick_lasts_a_few_steps_and_comes_as_often_as_asked():
    env = make_env("tabletop", **FAST)[0]
    noise = ActionNoise(std=0.0, kick_probability=0.1, kick_std=0.2)
    kicked = []
    for episode in demonstrations(env, expert_for(TABLETOP_ID), 20, noise=noise, only_successes=False):
        wanted = episode.frames["action"] - episode.frames["observation.state"]
        moved = np.diff(episode.frames["observation.state"], axis=0)
        kicked += (np.linalg.norm(moved - wanted[:-1], axis=1) > 0.25 * MAX_STEP).tolist()
    assert 0.15 < np.mean(kicked) < 0.35  # 3 steps of every 13: 0.23


class Idle:
    def act(self, env):
        return np.zeros(2, np.float32)


def test_an_expert_that_always_fails_is_found_out():
    env = make_env("tabletop", tasks=("push",), max_episode_steps=2, **FAST)[0]
    with pytest.raises(ConfigError, match="failed in 21 of 21"):
        list(demonstrations(env, Idle(), 1))

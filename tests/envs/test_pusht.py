"""PushT as gym-pusht has it: LeRobot's keys, sizes, length and words."""

from __future__ import annotations

import numpy as np
import pytest

from smolact.envs.factory import make_env
from smolact.envs.mapping import EnvMapping
from smolact.errors import ConfigError
from smolact.types import FeatureType, PolicyFeature

pytest.importorskip("gym_pusht", reason="needs the extra: pip install '.[pusht]'")


def test_pusht_is_what_lerobots_dataset_shows():
    with make_env("pusht") as envs:
        observations, infos = envs.reset([0])
        assert envs.features == {
            "observation.image": PolicyFeature(FeatureType.VISUAL, (3, 96, 96)),
            "observation.state": PolicyFeature(FeatureType.STATE, (2,)),
            "action": PolicyFeature(FeatureType.ACTION, (2,)),
        }
        assert envs.fps == 10
        assert envs[0].spec.max_episode_steps == 300
        assert infos[0]["task"] == "Push the T-shaped block onto the T-shaped target."
        assert observations["observation.image"].std() > 10
        assert observations["observation.state"].max() > 1  # pixels of its 512 × 512 world


def test_a_settings_own_value_wins_and_pictures_have_lerobots_size():
    with make_env("pusht", render=True, observation_width=64, observation_height=64) as envs:
        observations, _ = envs.reset([0])
        assert observations["observation.image"].shape == (1, 64, 64, 3)
        assert envs.render(0).shape == (384, 384, 3)


@pytest.mark.parametrize("name", ["pusht", "gym_pusht/PushT-v0"])
@pytest.mark.parametrize(
    ("task", "told"),
    [
        ("PushT-v0", "Push the T-shaped block onto the T-shaped target."),
        ("gym_pusht/PushT-v0", "Push the T-shaped block onto the T-shaped target."),
        ("push it", "push it"),
    ],
)
def test_the_name_that_lerobot_calls_task_is_no_instruction(name, task, told):
    with make_env(name, task=task) as envs:
        assert envs.reset([0])[1][0]["task"] == told


def test_a_mappings_task_wins_over_the_usual_words():
    mapping = EnvMapping({"agent_pos": "observation.state"}, task="move the T")
    with make_env("pusht", mapping=mapping) as envs:
        assert envs.reset([0])[1][0]["task"] == "move the T"


def test_the_same_seed_gives_the_same_episode_whatever_was_before():
    actions = np.random.default_rng(0).uniform(0, 512, (20, 1, 2)).astype(np.float32)

    def end(envs):
        envs.reset([7])
        for action in actions:
            observations, *_ = envs.step(action)
        return observations

    with make_env("pusht") as one, make_env("pusht") as other:
        other.reset([3])
        other.step(actions[0])
        first, second = end(one), end(other)
    for key in first:
        np.testing.assert_array_equal(first[key], second[key])


def test_success_is_a_covered_target():
    with make_env("pusht") as envs:
        env = envs[0]
        env.reset(seed=0)
        inner = env.unwrapped
        inner.block.angle = float(inner.goal_pose[2])  # first: it turns about the centre of gravity
        inner.block.position = tuple(inner.goal_pose[:2].tolist())
        inner.agent.position = (60, 60)
        *_, reward, terminated, _, info = env.step(np.array([60, 60], np.float32))
        assert (reward, terminated, info["is_success"]) == (1.0, True, True)


def test_a_kind_of_observation_that_it_does_not_have_is_refused_in_its_own_words():
    with pytest.raises(ConfigError, match=r"Unknown obs_type.*--env\.kwargs"):
        make_env("pusht", obs_type="pictures")

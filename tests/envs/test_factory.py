from __future__ import annotations

import sys
from typing import ClassVar

import gymnasium
import numpy as np
import pytest

from smolact.envs.factory import make_env
from smolact.envs.mapping import EnvMapping, LanguageConditioned, PolicyEnv, play_random_episode
from smolact.envs.seeding import episode_seed
from smolact.errors import (
    ConfigError,
    EnvironmentNotFoundError,
    FeatureError,
    MissingDependencyError,
    NotFoundError,
)
from smolact.types import FeatureType, PolicyFeature


class Nested(gymnasium.Env):
    """Two cameras, names of its own, done at its third step; tells success under a key of its own."""

    metadata: ClassVar[dict] = {"render_modes": []}
    observation_space = gymnasium.spaces.Dict(
        {
            "pixels": gymnasium.spaces.Dict(
                {name: gymnasium.spaces.Box(0, 255, (8, 6, 3), np.uint8) for name in ("top", "wrist")}
            ),
            "qpos": gymnasium.spaces.Box(-1, 1, (4,), np.float64),
        }
    )
    action_space = gymnasium.spaces.Box(-1, 1, (3,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps, self.length = 0, 2 if seed == 2 else 3
        return self.observation_space.sample(), {}

    def step(self, action):
        self.steps += 1
        done = self.steps == self.length
        return self.observation_space.sample(), 1.0, done, False, {"won": done and action[0] > 0}


def nested(mapping=None, **settings):
    return PolicyEnv(Nested(), mapping, **settings)


QPOS = EnvMapping({"pixels.top": "observation.image", "qpos": "observation.state"}, success="won")


def test_the_tabletop_has_the_keys_of_a_batch():
    env = make_env("tabletop", image_size=32)
    assert env.features == {
        "observation.image": PolicyFeature(FeatureType.VISUAL, (3, 32, 32)),
        "observation.state": PolicyFeature(FeatureType.STATE, (2,)),
        "action": PolicyFeature(FeatureType.ACTION, (2,)),
    }
    observation, info = env[0].reset(seed=0)
    assert observation["observation.image"].shape == (32, 32, 3)
    assert env[0].observation_space.contains(observation)
    assert info["task"]


def test_named_cameras_keep_their_names_and_what_has_no_name_is_left_out():
    assert set(nested(task="go").features) == {
        "observation.images.top",
        "observation.images.wrist",
        "action",
    }


def test_a_mapping_file_names_everything(tmp_path):
    path = tmp_path / "env.yaml"
    path.write_text(
        "observation:\n  pixels.top: observation.image\n  qpos: observation.state\nsuccess: won\ntask: go\n"
    )
    env = nested(EnvMapping.from_file(path))
    observation, info = env.reset(seed=0)
    assert {key: value.dtype for key, value in observation.items()} == {
        "observation.image": np.uint8,
        "observation.state": np.float32,
    }
    assert info["task"] == "go"
    for _ in range(3):
        *_, terminated, _, info = env.step(np.ones(3, np.float32))
    assert (terminated, info["is_success"]) == (True, True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "not YAML"),
        ("task: go", "needs a section 'observation'"),
        ("observation: {a: b}\nsucces: won", "Did you mean 'success'"),
        ("observation: {a: 3}", "'a: 3' should be text"),
    ],
)
def test_a_bad_mapping_file_is_named(tmp_path, text, message):
    path = tmp_path / "env.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        EnvMapping.from_file(path)
    assert str(path) in str(caught.value)


def test_a_mapping_file_that_is_not_there_says_what_is_near(tmp_path):
    (tmp_path / "pusht.yaml").touch()
    with pytest.raises(NotFoundError, match=r"Did you mean 'pusht\.yaml'"):
        EnvMapping.from_file(tmp_path / "pusht.yml")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"pixels.top_": "observation.image"}, r"Did you mean 'pixels\.top'"),
        ({"qpos": "observation.image"}, r"expected \(height, width, 3\) uint8"),
        ({"pixels.top": "observation.state"}, "expected a vector"),
    ],
)
def test_a_mapping_that_does_not_fit_is_refused(names, message):
    with pytest.raises(FeatureError, match=message):
        nested(EnvMapping(names))


def test_an_environment_without_the_usual_names_asks_for_a_mapping():
    with pytest.raises(ConfigError, match=r"observes observation.*--env\.mapping"):
        make_env("Pendulum-v1")


def test_any_gymnasium_environment_works_with_a_mapping():
    env = make_env(
        "Pendulum-v1",
        2,
        mapping={"observation": "observation.state"},
        task="swing it up",
        max_episode_steps=5,
    )
    observations, infos = env.reset([0, 1])
    assert observations["observation.state"].shape == (2, 3)
    assert [info["task"] for info in infos] == ["swing it up"] * 2
    assert env.features["action"].shape == (1,)


def test_discrete_actions_are_refused():
    with pytest.raises(FeatureError, match="Discrete"):
        make_env("CartPole-v1", mapping={"observation": "observation.state"})


def test_an_environment_that_gives_no_task_needs_one():
    with pytest.raises(ConfigError, match="--task"):
        nested(QPOS).reset(seed=0)


def test_an_environment_that_does_not_tell_success_is_found_out():
    env = nested(EnvMapping(QPOS.observation), task="go")
    env.reset(seed=2)
    env.step(np.ones(3, np.float32))
    with pytest.raises(ConfigError, match=r"no 'is_success' in \['won'\]"):
        env.step(np.ones(3, np.float32))


def test_a_given_task_sets_the_goal_of_an_environment_that_takes_goals():
    env = make_env("tabletop", task="push the pink block to the top zone")[0]
    assert isinstance(env.unwrapped, LanguageConditioned)
    _, info = env.reset(seed=3)
    assert info["task"] == "push the pink block to the top zone"
    assert str(env.unwrapped.goal) == "push the pink block to the top zone"
    _, info = env.reset(seed=3, options={"task": "reach the red block"})
    assert info["task"] == "reach the red block"


@pytest.mark.parametrize("name", ["tabeltop", "smolact/Tabletop-v1", "Pendulum", "no such id"])
def test_an_unknown_environment_is_an_error_that_names_what_there_is(name):
    near = {"tabeltop": "tabletop", "smolact/Tabletop-v1": "smolact/Tabletop-v0", "Pendulum": "Pendulum-v1"}
    with pytest.raises(
        EnvironmentNotFoundError,
        match=near.get(name, "There are tabletop, pusht, so101, metaworld, aloha, libero and"),
    ):
        make_env(name)


def test_a_package_that_is_not_installed_is_named():
    with pytest.raises(MissingDependencyError, match="no_such_package"):
        make_env("no_such_package:Env-v0")


def test_an_unknown_setting_is_named():
    with pytest.raises(ConfigError, match="blocks"):
        make_env("tabletop", blocks=3)


def test_an_environment_without_an_end_is_refused():
    gymnasium.register("smolact-test/Endless-v0", entry_point=Nested)
    try:
        with pytest.raises(ConfigError, match="episode_length=N"):
            make_env("smolact-test/Endless-v0")
        assert len(make_env("smolact-test/Endless-v0", max_episode_steps=3)) == 1
    finally:
        del gymnasium.registry["smolact-test/Endless-v0"]


def test_who_is_done_waits_unchanged():
    gymnasium.register("smolact-test/Nested-v0", entry_point=Nested, max_episode_steps=9)
    try:
        batch = make_env("smolact-test/Nested-v0", 2, mapping=QPOS, task="go")
    finally:
        del gymnasium.registry["smolact-test/Nested-v0"]
    batch.reset([1, 2])
    actions = np.ones((2, 3), np.float32)
    assert not batch.step(actions)[2].any()
    second, _, done, second_infos = batch.step(actions)
    assert done.tolist() == [False, True]
    third, rewards, done, infos = batch.step(-actions)
    assert done.all()
    assert rewards.tolist() == [1.0, 0.0]
    assert np.array_equal(third["observation.state"][1], second["observation.state"][1])
    assert not np.array_equal(third["observation.state"][0], second["observation.state"][0])
    assert infos[1] == second_infos[1]
    assert [info["is_success"] for info in infos] == [False, True]


def test_a_batch_may_begin_fewer_episodes_than_it_has_environments():
    with make_env("tabletop", 3) as batch:
        observations, infos = batch.reset([7, 8], [None, {"task": "reach the red block"}])
        assert observations["observation.state"].shape == (2, 2)
        assert infos[1]["task"] == "reach the red block"
        with pytest.raises(ConfigError, match="4 seeds for 3"):
            batch.reset([1, 2, 3, 4])


def test_episode_seeds_of_different_runs_and_purposes_have_nothing_in_common():
    runs = [(seed, purpose) for seed in (0, 1) for purpose in ("evaluation", "demonstrations")]
    seeds = [episode_seed(seed, index, purpose) for seed, purpose in runs for index in range(200)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_pusht_without_its_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "gym_pusht", None)
    for name in ("pusht", "gym_pusht/PushT-v0"):
        with pytest.raises(MissingDependencyError, match=r"pip install 'smolact\[pusht\]'"):
            make_env(name)


class Odd(gymnasium.Env):
    """One observation of whatever space; success as it is told to tell it."""

    metadata: ClassVar[dict] = {"render_modes": []}

    def __init__(self, space, actions=None, gives=None, success=True):
        self.observation_space = gymnasium.spaces.Dict({"seen": space})
        self.action_space = actions or gymnasium.spaces.Box(-1, 2, (2,), np.float32)
        self.gives, self.success, self.taken = gives, success, None

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._observe(), {}

    def step(self, action):
        self.taken = action
        return self._observe(), 0.0, True, False, {"is_success": self.success}

    def _observe(self):
        return {"seen": self.observation_space["seen"].sample() if self.gives is None else self.gives}


def box(*shape, dtype=np.uint8, high=255):
    return gymnasium.spaces.Box(0, high, shape, dtype)


@pytest.mark.parametrize(
    ("space", "name", "message"),
    [
        (box(3, 8, 8), "observation.image", r"\(3, 8, 8\) uint8.*transpose\(1, 2, 0\)"),
        (box(8, 8), "observation.image", "grey"),
        (box(8, 8, 1), "observation.images.top", "grey"),
        (box(8, 8, 4), "observation.image", "three of its channels"),
        (box(8, 8, 3, dtype=np.float32, high=1), "observation.image", "make it uint8"),
        (box(7), "observation.image", "another entry"),
        (box(8, 8, 3), "observation.state", "looks like a picture: map it to observation.image"),
        (box(4, 3, dtype=np.float64), "observation.state", r"\(4, 3\).*FlattenObservation"),
        (gymnasium.spaces.Discrete(3), "observation.state", r"\(\).*FlattenObservation"),
        (gymnasium.spaces.Text(9), "observation.state", "FlattenObservation"),
        (box(2), "observation.stat", r"no batch key.*Did you mean 'observation\.state'"),
        (box(2), "action", "no batch key"),
    ],
)
def test_an_observation_that_a_policy_can_not_take_is_refused_with_the_way_out(space, name, message):
    with pytest.raises(FeatureError, match=message):
        PolicyEnv(Odd(space), EnvMapping({"seen": name}))


def test_two_observations_can_not_have_the_same_batch_key():
    names = {"pixels.top": "observation.image", "pixels.wrist": "observation.image"}
    with pytest.raises(FeatureError, match=r"both 'pixels\.top' and 'pixels\.wrist'"):
        nested(EnvMapping(names))


@pytest.mark.parametrize(
    "actions",
    [
        gymnasium.spaces.MultiDiscrete([2, 3]),
        gymnasium.spaces.Box(-1, 1, (2, 3)),
        gymnasium.spaces.Dict({"arm": gymnasium.spaces.Box(-1, 1, (2,))}),
    ],
)
def test_actions_that_are_no_vector_are_refused_with_the_way_out(actions):
    with pytest.raises(FeatureError, match="TransformAction"):
        PolicyEnv(Odd(box(2), actions), EnvMapping({"seen": "observation.state"}))


@pytest.mark.parametrize(
    ("space", "name", "gives"),
    [
        (box(8, 8, 3), "observation.image", np.ones((8, 8, 3), np.float32)),
        (box(8, 8, 3), "observation.image", np.zeros((4, 8, 3), np.uint8)),
        (box(2), "observation.state", np.zeros(3)),
    ],
)
def test_an_environment_that_gives_something_else_than_it_says_is_found_out(space, name, gives):
    env = PolicyEnv(Odd(space, gives=gives), EnvMapping({"seen": name}, task="go"))
    with pytest.raises(FeatureError, match="observation_space says"):
        env.reset()


@pytest.mark.parametrize("success", ["no", None, np.zeros(2)])
def test_a_success_that_is_neither_true_nor_false_is_refused(success):
    env = PolicyEnv(Odd(box(2), success=success), EnvMapping({"seen": "observation.state"}, task="go"))
    env.reset()
    with pytest.raises(ConfigError, match="true or false"):
        env.step(np.zeros(2))


@pytest.mark.parametrize("success", [np.True_, 1.0, np.ones(1)])
def test_a_success_may_be_any_kind_of_true(success):
    env = PolicyEnv(Odd(box(2), success=success), EnvMapping({"seen": "observation.state"}, task="go"))
    env.reset()
    assert env.step(np.zeros(2))[-1]["is_success"] is True


def test_actions_are_brought_into_the_environments_bounds_and_kind():
    env = PolicyEnv(Odd(box(2)), EnvMapping({"seen": "observation.state"}, task="go"))
    env.reset()
    env.step(np.array([-7.0, 1.5], np.float64))
    np.testing.assert_array_equal(env.unwrapped.taken, [-1.0, 1.5])
    assert env.unwrapped.taken.dtype == np.float32


def test_an_environment_that_does_not_draw_says_so_or_goes_without():
    settings = {"mapping": {"seen": "observation.state"}, "task": "go"}
    gymnasium.register("smolact-test/Blind-v0", entry_point=lambda: Odd(box(2)), max_episode_steps=3)
    try:
        with pytest.raises(ConfigError, match="--n_videos=0"):
            make_env("smolact-test/Blind-v0", render=True, **settings)
        assert not make_env("smolact-test/Blind-v0", render=None, **settings).can_render
    finally:
        del gymnasium.registry["smolact-test/Blind-v0"]
    assert make_env("tabletop", render=None).can_render
    assert not make_env("tabletop").can_render


def test_a_rehearsal_finds_what_an_environment_does_not_tell():
    settings = {"mapping": {"observation": "observation.state"}, "max_episode_steps": 4}
    play_random_episode(make_env("tabletop")[0])
    with pytest.raises(ConfigError, match="--task"):
        play_random_episode(make_env("Pendulum-v1", **settings)[0])
    with pytest.raises(ConfigError, match="does not tell success"):
        play_random_episode(make_env("Pendulum-v1", task="swing it up", **settings)[0])


@pytest.mark.parametrize("text", ["observation: {}", "observation:\n", "observation: [a]"])
def test_a_mapping_file_that_maps_nothing_is_refused(tmp_path, text):
    path = tmp_path / "env.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="needs a section 'observation'"):
        EnvMapping.from_file(path)


def test_a_tabletop_setting_out_of_range_is_told_in_the_tabletops_words():
    with pytest.raises(ConfigError, match=r"^The tabletop can't have n_blocks=99"):
        make_env("tabletop", n_blocks=99)

"""ALOHA: arguments without its package; LeRobot's episodes and looks with it."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from smolact.envs.benchmarks.aloha import ALOHA_ID, LEROBOT_WORDS, WORDS
from smolact.envs.experts import expert_for
from smolact.envs.factory import make_env
from smolact.envs.rendering import import_simulator
from smolact.errors import ConfigError, MissingDependencyError
from tests.envs import benchmarks
from tests.envs.benchmarks import Trace, compare_pictures, is_version_of, suite, traces

installed = benchmarks.needs("gym_aloha", "aloha")
TRACES = list(traces("aloha_transfercube_seed1000.json"))
START = np.tile(np.array([0, -0.96, 1.16, 0, -0.3, 0, 0.1], np.float32), 2)


@pytest.mark.skipif(importlib.util.find_spec("gym_aloha") is not None, reason="the extra is installed")
def test_without_the_package_the_extra_is_named() -> None:
    with pytest.raises(MissingDependencyError, match=r"pip install 'smolact\[aloha\]'"):
        make_env("aloha")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "AlohaInsertion-v1"}, "Nearest: AlohaInsertion-v0"),
        ({"task_ids": [2]}, "task_ids=2: expected 0 to 1"),
        ({"obs_type": "state"}, "obs_type='state'"),
        ({"fps": 30}, "takes 50 control steps a second"),
    ],
)
def test_wrong_arguments_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_env("aloha", **settings)


def test_there_is_no_expert_and_the_message_lists_those_that_exist() -> None:
    with pytest.raises(ConfigError, match=r"no scripted expert for 'aloha', only for .*metaworld") as error:
        expert_for("aloha")
    assert str(error.value).count("aloha") == 1


def test_a_simulator_whose_graphics_library_fails_names_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_simulator.py").write_text("None.glGetError")  # as PyOpenGL does without OSMesa
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    with pytest.raises(MissingDependencyError, match=r"can't draw with osmesa.*apt-get install libegl1"):
        import_simulator("broken_simulator", "aloha")


# With the package -------------------------------------------------------------------------------------------------


@installed
def test_both_tasks_are_one_group_and_have_the_words_of_the_datasets_or_lerobots() -> None:
    for settings, words in (({}, WORDS), ({"lerobot_words": True}, LEROBOT_WORDS)):
        tasks = suite(ALOHA_ID, **settings).tasks
        assert {task.name: task.instruction for task in tasks} == words
        assert {task.group for task in tasks} == {"aloha"}
    with make_env("aloha", task="AlohaTransferCube-v0") as envs:
        assert [task.group for task in envs[0].unwrapped.tasks] == ["aloha"]
        shapes = {name: feature.shape for name, feature in envs.features.items()}
        assert shapes == {
            "observation.images.top": (3, 480, 640),
            "observation.state": (14,),
            "action": (14,),
        }
        assert envs.fps == 50
        # Absolute angles beyond gym-aloha's action space, [−1, 1], arrive.
        env = envs[0]
        assert np.clip(START, env.action_space.low, env.action_space.high).tolist() == START.tolist()


@installed
@pytest.mark.parametrize("trace", TRACES, ids=str)
def test_an_episode_equals_lerobots(trace: Trace) -> None:
    env = suite(ALOHA_ID, task=trace.task)
    benchmarks.replay(env, trace, exact=is_version_of(trace, "gym-aloha", "mujoco"))


@installed
@pytest.mark.parametrize("trace", TRACES, ids=str)
def test_the_pictures_equal_lerobots(trace: Trace) -> None:
    env = suite(ALOHA_ID, task=trace.task)
    compare_pictures(env, trace, (0, 1, 10, 20))
    env.close()


@installed
def test_what_is_not_looked_at_is_not_drawn_and_changes_nothing() -> None:
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, (6, 14))
    benchmarks.look_later(ALOHA_ID, "AlohaInsertion-v0", START + noise)


@installed
def test_tasks_in_turn_equal_fresh_environments() -> None:
    # The arms of both tasks start alike: gym-aloha's objects do not show in the joints.
    env, boxes = suite(ALOHA_ID), []
    for task_id in (0, 1, 0):
        env.reset(seed=7, options={"task_id": task_id})
        boxes.append(env.simulation._physics.data.qpos[16:].tolist())
    assert boxes[0] == boxes[2] and len(boxes[0]) == 14 and len(boxes[1]) == 7
    fresh = suite(ALOHA_ID)
    fresh.reset(seed=7, options={"task_id": 1})
    assert fresh.simulation._physics.data.qpos[16:].tolist() == boxes[1]


@installed
def test_physics_that_diverge_end_the_episode_without_success(caplog: pytest.LogCaptureFixture) -> None:
    env, random = suite(ALOHA_ID), np.random.default_rng(0)
    env.reset(seed=3)
    over, steps = False, 0
    with caplog.at_level(logging.WARNING):
        while not over and steps < 400:
            observation, reward, over, _, info = env.step(random.normal(size=14) * 1e6)
            steps += 1
    assert over and reward == 0 and not info["is_success"] and np.isfinite(observation["agent_pos"]).all()
    assert f"AlohaInsertion-v0 ended after {steps} steps, without success" in caplog.text
    assert env.reset(seed=3)[0]["agent_pos"] == pytest.approx(START, abs=1e-3)

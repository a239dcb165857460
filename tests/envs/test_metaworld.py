"""Meta-World: names, words and arguments without its package; LeRobot's episodes, looks and the expert with it."""

from __future__ import annotations

import importlib.util
from collections import Counter
from typing import Any

import numpy as np
import pytest

from smolact.cli.main import main
from smolact.envs.benchmarks.metaworld import METAWORLD_ID, instructions
from smolact.envs.demonstrations import demonstrations
from smolact.envs.experts import expert_for
from smolact.envs.factory import make_env
from smolact.errors import ConfigError, MissingDependencyError
from smolact.types import PolicyFeature
from tests.envs import benchmarks
from tests.envs.benchmarks import SMALL, Trace, compare_pictures, is_version_of, load, suite, traces

installed = benchmarks.needs("metaworld", "metaworld")
TRACES = list(
    traces("metaworld_reach_assembly_pickplace_seed1000.json", "metaworld_push_2envs_seeds1000_1001.json")
)
ACTION = np.array([0.3, -0.5, -0.9, 0.4], np.float32)


def test_every_task_has_words_of_its_own_and_lerobots_are_at_hand() -> None:
    ours, theirs = instructions(), instructions(lerobot_words=True)
    assert len(ours) == len(set(ours.values())) == 50 and len(set(theirs.values())) == 49
    assert {name for name in ours if ours[name] != theirs[name]} == {"push-back-v3"}
    recorded = load("metaworld_reach_assembly_pickplace_seed1000.json")["tasks"]
    for task in recorded.values():
        assert theirs[task["task"][0]] == task["task_description"][0]


@pytest.mark.skipif(importlib.util.find_spec("metaworld") is not None, reason="the extra is installed")
def test_without_the_package_the_extra_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(MissingDependencyError, match=r"pip install 'smolact\[metaworld\]'"):
        make_env("metaworld")
    assert main(["dataset", "make-demos", "--env.type=metaworld", "--output=nowhere"]) == 1
    assert "smolact[metaworld]" in capsys.readouterr().err


def test_the_task_of_the_command_line_selects_tasks(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["dataset", "make-demos", "--env.type=metaworld", "--env.task=easi", "--output=nowhere"]
    assert main(words) == 2
    assert "Nearest: easy" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "easy,metaworld-push-v2"}, "no task or group of tasks 'push-v2'. Nearest: .*push-v3"),
        ({"task": "esy"}, "Nearest: easy"),
        ({"task": " , "}, "no task at all"),
        ({"task": "hard", "task_ids": [6]}, "task_ids=6: expected 0 to 5"),
        ({"task": "hard", "task_ids": [-1]}, "task_ids=-1: expected a whole number"),
        ({"task_ids": []}, "no task at all"),
        ({"obs_type": "state"}, "obs_type='state': use one of"),
        ({"obs_type": "pixel"}, "Did you mean 'pixels'"),
        ({"rendering": "quick"}, "rendering='quick'"),
        ({"observation_width": 8}, "16 pixels or more"),
        ({"fps": 30}, "takes 80 control steps a second"),
    ],
)
def test_wrong_arguments_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_env("metaworld", **settings)


# With the package -------------------------------------------------------------------------------------------------


@installed
def test_tasks_are_selected_as_in_lerobot() -> None:
    everything = suite(METAWORLD_ID).tasks
    groups = Counter(task.group for task in everything)
    assert groups == {"easy": 28, "medium": 11, "hard": 6, "very_hard": 5}
    some = suite(METAWORLD_ID, task="hard, metaworld-reach-v3", lerobot_words=True).tasks
    assert [task.name for task in some][-2:] == ["push-back-v3", "reach-v3"] and len(some) == 7
    assert (some[-1].group, some[-2].instruction) == ("reach-v3", "Push the puck to a goal")
    first_two = suite(METAWORLD_ID, task="easy,hard", task_ids=[1, 0]).tasks
    assert [task.group for task in first_two] == ["easy", "easy", "hard", "hard"]
    with make_env("metaworld", task="very_hard") as envs:
        assert len(envs[0].unwrapped.tasks) == 5
        assert envs.features["observation.image"] == PolicyFeature("VISUAL", (3, 480, 480))
        assert (envs.features["observation.state"].shape, envs.fps) == ((4,), 80)
    assert set(suite(METAWORLD_ID, obs_type="pixels").observation_space) == {"pixels"}


@installed
@pytest.mark.parametrize("trace", TRACES, ids=str)
def test_an_episode_equals_lerobots(trace: Trace) -> None:
    env = suite(METAWORLD_ID, task=trace.task)
    benchmarks.replay(env, trace, exact=is_version_of(trace, "metaworld", "mujoco"))


@installed
@pytest.mark.parametrize("trace", TRACES[1::2], ids=str)
def test_the_pictures_equal_lerobots(trace: Trace) -> None:
    env = suite(METAWORLD_ID, task=trace.task)
    compare_pictures(env, trace, (0, 20))
    env.close()


@installed
def test_what_is_not_looked_at_is_not_drawn_and_changes_nothing() -> None:
    benchmarks.look_later(METAWORLD_ID, "pick-place-v3", np.random.default_rng(0).uniform(-1, 1, (6, 4)))


@installed
def test_tasks_in_turn_equal_fresh_environments() -> None:
    benchmarks.tasks_in_turn(METAWORLD_ID, ACTION, task="drawer-open-v3,hammer-v3")


@installed
def test_steps_are_refused_or_ended_where_they_should_be() -> None:
    env = suite(METAWORLD_ID, task="reach-v3")
    with pytest.raises(ConfigError, match="call reset first"):
        env.step(ACTION)
    for options, message in (
        ({"task_id": 1}, "task_id=1: expected 0 to 0"),
        ({"task_id": 0.0}, "expected a whole number"),
        ({"task": 0}, "Did you mean 'task_id'"),
    ):
        with pytest.raises(ConfigError, match=message):
            env.reset(seed=0, options=options)
    env.reset(seed=0)
    for action in (ACTION[:3], ACTION * np.nan):
        with pytest.raises(ConfigError, match="takes 4 finite numbers"):
            env.step(action)
    states = [env.reset(**({"seed": 3} if again else {}))[0]["agent_pos"].tolist() for again in (1, 0, 1)]
    assert states[0] == states[2]


@installed
@pytest.mark.parametrize("task", ["button-press-topdown-v3", "pick-place-v3", "stick-push-v3", "reach-v3"])
def test_the_expert_succeeds_when_it_did_before(task: str) -> None:
    recorded, expert = load("metaworld_experts.json")["tasks"][task], expert_for("metaworld")
    env = suite(METAWORLD_ID, task=task)
    for seed, steps in zip(range(1000, 1003), recorded["first_success"], strict=False):
        env.reset(seed=seed)
        taken, over = 0, False
        while not over and taken < 500:
            *_, over, _, info = env.step(expert.act(env))
            taken += 1
        assert info["is_success"] and taken == pytest.approx(steps, abs=3)


@installed
def test_demonstrations_take_turns_in_the_tasks() -> None:
    expert = expert_for("metaworld")
    with pytest.raises(ConfigError, match="can't act in"), make_env("tabletop") as other:
        expert.act(other[0])
    with make_env("metaworld", task="stick-push-v3,handle-press-v3", **SMALL) as envs:
        try:
            envs[0].reset(seed=0)
        except MissingDependencyError as error:
            pytest.skip(f"no graphics library: {error}")
        made = list(demonstrations(envs[0], expert, 2))
    words = instructions()
    assert [episode.task for episode in made] == [words["stick-push-v3"], words["handle-press-v3"]]
    assert made[0].frames["observation.image"].shape[1:] == (32, 48, 3)

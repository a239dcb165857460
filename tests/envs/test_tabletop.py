from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import smolact.envs.factory  # noqa: F401  registers the id
from smolact.envs.tabletop import HOLD_STEPS, TABLETOP_ID, Tabletop
from smolact.envs.tabletop_drawing import draw_table
from smolact.envs.tabletop_language import UNSEEN_COMBINATIONS, Goal
from smolact.envs.tabletop_scene import (
    BLOCK_SIDE,
    COLORS,
    MAX_STEP,
    PUSHER_RADIUS,
    ZONES,
    Block,
    TableState,
    TableWorld,
)
from smolact.errors import ConfigError


def without_pixels(**settings: object) -> Tabletop:
    return Tabletop(obs_type="environment_state_agent_pos", **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("obs_type", ["pixels_agent_pos", "environment_state_agent_pos"])
def test_gymnasium_finds_nothing_wrong(obs_type):
    check_env(gymnasium.make(TABLETOP_ID, obs_type=obs_type, render_mode="rgb_array").unwrapped)


def play(env, seed, steps=25):
    random = np.random.default_rng(seed)
    observation, info = env.reset(seed=seed)
    trace = [observation["pixels"], observation["agent_pos"]]
    for _ in range(steps):
        observation, _, _, _, info = env.step(random.random(2, dtype=np.float32))
        trace += [observation["pixels"], observation["agent_pos"]]
    return info["task"], trace


def test_the_same_seed_gives_the_same_episode_bit_for_bit():
    env = Tabletop(n_blocks=5)
    first = [play(env, seed) for seed in range(4)]
    play(env, 99)  # what went before must not matter
    for (task, trace), (task_again, trace_again) in zip(
        first, [play(Tabletop(n_blocks=5), seed) for seed in range(4)], strict=True
    ):
        assert task == task_again
        assert all(np.array_equal(one, other) for one, other in zip(trace, trace_again, strict=True))


def test_another_seed_gives_another_scene():
    env = without_pixels()
    scenes = [env.reset(seed=seed) and env.state for seed in range(10)]
    assert len(set(scenes)) == 10


def test_an_episode_is_cut_off_after_80_steps():
    env = gymnasium.make(TABLETOP_ID)
    env.reset(seed=0)
    corner = np.zeros(2, np.float32)
    outcomes = [env.step(corner)[2:4] for _ in range(80)]
    assert outcomes == [(False, False)] * 79 + [(False, True)]


def test_scenes_begin_apart_and_with_no_goal_reached():
    env = without_pixels(n_blocks=6, combinations="all")
    for seed in range(50):
        env.reset(seed=seed)
        assert len({block.color for block in env.state.blocks}) == 6
        assert not any(goal.holds(env.state) for goal in env.allowed_goals())
        centres = np.array([block[1:3] for block in env.state.blocks])
        distances = np.linalg.norm(centres[:, None] - centres[None], axis=-1)[np.triu_indices(6, 1)]
        assert distances.min() > BLOCK_SIDE


def test_the_goal_of_an_option_keeps_the_scene():
    env = without_pixels()
    env.reset(seed=5)
    scene, own = env.state, env.goal
    other = next(goal for goal in env.allowed_goals() if goal.color != own.color)
    env.reset(seed=5, options={"goal": other})
    assert (env.state, env.goal, env.task in other.phrasings("train")) == (scene, other, True)


def test_an_absent_colour_is_put_on_the_goal_block_of_the_seed():
    env = without_pixels()
    env.reset(seed=5)
    scene, own = env.state, env.goal
    absent = next(color for color in COLORS if color not in {block.color for block in scene.blocks})
    env.reset(seed=5, options={"task": f"reach the {absent} block"})
    repainted = [
        block._replace(color=absent) if block.color == own.color else block for block in scene.blocks
    ]
    assert env.state.blocks == tuple(repainted)
    assert env.goal == Goal("reach", absent)


def test_words_beside_a_goal_are_passed_on_as_they_are():
    env = without_pixels()
    _, info = env.reset(seed=0, options={"task": "", "goal": Goal("reach", "red")})
    assert (info["task"], info["task_kind"], env.goal) == ("", "reach", Goal("reach", "red"))


def test_words_that_mean_nothing_are_refused_with_examples():
    with pytest.raises(ConfigError, match=r"fly to the moon[\s\S]*push the \{color\} block[\s\S]*purple"):
        without_pixels().reset(seed=0, options={"task": "fly to the moon"})


def test_an_unknown_option_is_refused():
    with pytest.raises(ConfigError, match="Did you mean 'task'"):
        without_pixels().reset(seed=0, options={"tusk": "reach the red block"})


def test_training_never_draws_an_unseen_combination_and_unseen_draws_nothing_else():
    for split, unseen in (("train", False), ("unseen", True)):
        env = without_pixels(combinations=split, tasks=("push",))
        for seed in range(60):
            env.reset(seed=seed)
            goals = (env.goal, *env.allowed_goals())
            assert all(((goal.color, goal.place) in UNSEEN_COMBINATIONS) is unseen for goal in goals)


def test_unseen_wordings_are_drawn_only_when_asked_for():
    env = without_pixels(phrasings="unseen")
    for seed in range(20):
        _, info = env.reset(seed=seed)
        assert info["task"] in env.goal.phrasings("unseen")
        assert info["task"] not in env.goal.phrasings("train")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tasks": ("fly",)}, "tasks='fly'"),
        ({"n_blocks": 7}, "n_blocks=7"),
        ({"phrasings": "new"}, "phrasings='new'"),
        ({"image_size": 4}, "image_size=4"),
        ({"tasks": ("reach",), "combinations": "unseen"}, "leaves no goal"),
    ],
)
def test_settings_that_can_not_work_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        Tabletop(**settings)


@pytest.mark.parametrize("action", [[0.1, np.nan], [0.1], [np.inf, 0.0]])
def test_an_action_that_is_not_two_finite_numbers_is_refused(action):
    env = without_pixels()
    env.reset(seed=0)
    with pytest.raises(ConfigError, match="two finite numbers"):
        env.step(np.array(action, np.float32))


def test_the_pusher_goes_where_it_is_told_at_its_speed():
    world = TableWorld(TableState((0.2, 0.2), ()))
    positions = [world.state.pusher]
    for _ in range(30):
        world.move_towards(0.6, 0.5)
        positions.append(world.state.pusher)
    steps = np.linalg.norm(np.diff(positions, axis=0), axis=1)
    assert steps.max() <= MAX_STEP * 1.01
    assert np.allclose(positions[-1], (0.6, 0.5), atol=1e-3)


def test_a_pushed_block_moves_and_stays_where_it_was_left():
    world = TableWorld(TableState((0.3, 0.5), (Block("red", 0.5, 0.5, 0.0),)))
    for _ in range(8):
        world.move_towards(0.55, 0.5)
    pushed = world.state.block("red").x
    assert pushed == pytest.approx(0.55 + BLOCK_SIDE / 2 + PUSHER_RADIUS, abs=0.02)
    for _ in range(8):
        world.move_towards(0.3, 0.5)
    assert world.state.block("red").x == pytest.approx(pushed, abs=0.005)


def test_nothing_is_pressed_into_anything_however_hard_it_is_pushed():
    blocks = (Block("red", 0.3, 0.5, 0.1), Block("green", 0.14, 0.5, 0.4))
    world = TableWorld(TableState((0.45, 0.5), blocks))
    for _ in range(40):
        world.move_towards(0.0, 0.5)
        red, green = world.state.blocks
        assert min(red.x, green.x) > BLOCK_SIDE / 2 - 0.002
        assert np.hypot(red.x - green.x, red.y - green.y) > BLOCK_SIDE - 0.003
        assert world.state.distance_to(red) > BLOCK_SIDE / 2 + PUSHER_RADIUS - 0.003


def test_a_goal_counts_once_it_has_held_for_a_few_steps():
    env = without_pixels(tasks=("reach",))
    env.reset(seed=1)
    block = env.state.block(env.goal.color)
    held = 0
    for _ in range(60):
        _, reward, terminated, _, info = env.step(np.array([block.x, block.y], np.float32))
        held = held + 1 if env.goal.holds(env.state) else 0
        assert (reward, terminated, info["is_success"]) == (held >= HOLD_STEPS,) * 3
        if terminated:
            break
    assert terminated


def test_a_goal_without_its_block_can_not_be_judged():
    env = without_pixels(n_blocks=1)
    env.reset(seed=0)
    absent = next(color for color in COLORS if color != env.goal.color)
    with pytest.raises(ConfigError, match="blocks in this scene"):
        env.goal_reached(Goal("reach", absent))


@pytest.mark.parametrize("size", [64, 97, 256])
def test_blocks_pusher_and_zones_are_drawn_where_they_are(size):
    colors = list(COLORS)
    spots = [(0.3, 0.3), (0.7, 0.3), (0.3, 0.7), (0.7, 0.7), (0.06, 0.94), (0.94, 0.06)]
    blocks = tuple(Block(color, *spot, 0.3) for color, spot in zip(colors, spots, strict=True))
    picture = draw_table(TableState((0.5, 0.5), blocks), size)
    assert (picture.shape, picture.dtype) == ((size, size, 3), np.uint8)
    for color, (x, y) in zip(colors, spots, strict=True):
        assert np.abs(picture[int(y * size), int(x * size)].astype(int) - COLORS[color]).max() <= 1
    table = picture[0, 0].astype(int)
    for x, y in ZONES.values():
        assert np.abs(picture[int(y * size), int(x * size)].astype(int) - table).max() > 10


def test_edges_are_antialiased():
    """The picture's mean colour follows a block that moves by less than a pixel."""
    means = [
        draw_table(TableState((0.9, 0.9), (Block("blue", 0.4 + shift / 640, 0.5, 0.2),)), 64)[:, :26].mean()
        for shift in range(10)
    ]
    assert np.all(np.diff(means) > 0)


def test_the_picture_of_render_is_as_large_as_asked():
    env = Tabletop(render_mode="rgb_array", render_size=120, image_size=32)
    observation, _ = env.reset(seed=0)
    assert (observation["pixels"].shape, env.render().shape) == ((32, 32, 3), (120, 120, 3))
    assert Tabletop().render() is None

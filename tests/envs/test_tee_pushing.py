"""The T gives way as it does in the environment's physics, and ways lead around it."""

from __future__ import annotations

import numpy as np
import pytest

from smolact.envs.tee_pushing import (
    CENTRE,
    OUTLINE,
    RADIUS,
    WALLS,
    nearest_on_tee,
    pose_at,
    push,
    to_tee,
    to_world,
)
from smolact.envs.tee_ways import STAND_OFF, stands, ways
from tests.envs.table import Table


def pose_of(table):
    return pose_at(np.array([*table.block.position]), table.block.angle)


def pushed_in_pymunk(table, start, direction, length):
    for _ in range(30):
        gone = (np.array([*table.agent.position]) - start) @ direction
        table.step(start + direction * min(gone + 30, length))
    return pose_of(table)


@pytest.mark.parametrize("seed", range(12))
def test_a_push_does_what_it_does_in_pymunk(seed):
    random = np.random.default_rng(seed)
    stand = int(random.integers(len(stands().places)))
    tee = np.array([256.0, 256.0, random.uniform(-np.pi, np.pi)])
    table = Table(tee, (20, 20))
    pose = pose_of(table)
    start = to_world(stands().places[stand], pose)
    inward = to_world(stands().places[stand] + stands().inward[stand], pose) - start
    tilt = random.uniform(-0.4, 0.4)
    direction = np.array([[np.cos(tilt), -np.sin(tilt)], [np.sin(tilt), np.cos(tilt)]]) @ inward
    table.agent.position = tuple(start)
    told = push(pose, start[None], direction[None], 1.0, 60)[-1, 0]
    found = pushed_in_pymunk(table, start, direction, 60.0)
    assert np.hypot(*(found - pose)[:2]) > 2  # something happened
    np.testing.assert_allclose(told[:2], found[:2], atol=1.0)
    np.testing.assert_allclose(told[2], found[2], atol=0.02)


def test_the_walls_stop_the_tee_as_in_pymunk():
    start, direction = np.array([300.0, 146.0]), np.array([0.0, -1.0])
    table = Table((256, 129, np.pi), start)  # the stem almost touches the wall, and the push is beside it
    pose = pose_of(table)
    told = push(pose, start[None], direction[None], 1.0, 40)[-1, 0]
    found = pushed_in_pymunk(table, start, direction, 40.0)
    lowest = to_world(OUTLINE, told)[:, 1].min()
    assert lowest == pytest.approx(WALLS[0], abs=0.2)
    np.testing.assert_allclose(told[:2], found[:2], atol=2.0)
    np.testing.assert_allclose(told[2], found[2], atol=0.03)


def test_the_tees_frame_and_the_worlds_are_each_others_inverse():
    random = np.random.default_rng(0)
    points, poses = random.uniform(-100, 100, (5, 2)), random.uniform(-3, 3, (5, 3))
    np.testing.assert_allclose(to_tee(to_world(points, poses), poses), points, atol=1e-9)
    np.testing.assert_allclose(to_world(np.zeros(2), pose_at(np.array([3.0, 4.0]), 1.0)), [3, 4], atol=1e-9)
    np.testing.assert_allclose(to_world(CENTRE, np.array([7.0, 8.0, 2.0])), [7, 8], atol=1e-9)


def test_every_stand_is_as_far_off_as_it_should_be_and_looks_at_the_tee():
    known = stands()
    _, distance = nearest_on_tee(known.places)
    np.testing.assert_allclose(distance, RADIUS + STAND_OFF, atol=0.02)
    _, nearer = nearest_on_tee(known.places + known.inward)
    np.testing.assert_allclose(nearer, distance - 1, atol=0.02)


def test_a_way_leads_around_the_tee_and_is_the_shortest():
    pose, disc = np.array([256.0, 256.0, 0.7]), np.array([400.0, 120.0])
    lengths, first = ways(pose, disc)
    assert np.isfinite(lengths).all()
    for stand in range(len(lengths)):
        place, gone = disc, 0.0
        for _ in range(20):
            target = to_world(stands().places[ways(pose, place)[1][stand]], pose)
            between = place + np.linspace(0, 1, 60)[:, None] * (target - place)
            assert nearest_on_tee(to_tee(between, pose))[1].min() > RADIUS + 1
            gone, place = gone + np.hypot(*(target - place)), target
            if first[stand] == stand or np.allclose(place, to_world(stands().places[stand], pose)):
                break
        assert gone == pytest.approx(lengths[stand], abs=3.0)


def test_no_way_leads_out_of_the_table():
    pose, disc = np.array([60.0, 256.0, np.pi / 2]), np.array([400.0, 256.0])
    lengths, _ = ways(pose, disc)
    outside = to_world(stands().places, pose)[:, 0] < 0
    assert outside.any() and np.isinf(lengths[outside]).all()
    assert np.isfinite(lengths[~outside]).any()

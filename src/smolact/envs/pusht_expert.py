"""The scripted expert of gym-pusht: at every step it picks the best of many candidate pushes.

It is stateless. At each step it computes the effect of about two hundred straight pushes on the T (`tee_pushing.py`): from
stands all around it, and from the disc's position. Each push is cut at the stop with the largest gain per path length,
including the path around the T (`tee_ways.py`); the disc takes one step towards the best. A push in progress stays the best,
since its path is mostly done; after a disturbance another may win. The expert reads the environment and does not simulate in
it.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import pi
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from smolact.envs.tee_pushing import RADIUS, Array, nearest_on_tee, pose_at, push, to_tee, to_world
from smolact.envs.tee_ways import STAND_OFF, stands, ways
from smolact.errors import ConfigError

LEAD = 32.0
"""Largest distance from disc to action. The disc follows like a damped spring, about half of it per step."""

_TILTS = np.radians([-25.0, 0.0, 25.0])  # of a push from a stand, relative to the T's normal
_DIRECTIONS = 24  # number of pushes from the disc's position
_CONTACT_RANGE = 25.0  # largest distance from disc to T of such a push
_STOPS = 32  # compared stops per push
_STEPS_TO_GOAL = 25.0  # remaining distance over distance between two stops
_STEP = (0.5, 4.0)  # smallest and largest distance between two stops
_PIXELS_PER_RADIAN = 60.0  # weight of the angle in `distance`
_PUSH_COST = 25.0  # fixed cost of every push, in pixels of path
_STAND_REACHED = 8.0
_NO_STAND = -1


@dataclass(frozen=True)
class Pushes:
    """P candidate straight pushes.

    Attributes:
        starts: (P, 2), the disc's centre at first contact.
        directions: (P, 2), unit vectors.
        path_lengths: (P,), length of the disc's path to the start.
        via: (P,), the path's first stand; −1 for a push from the disc's position.
    """

    starts: Array
    directions: Array
    path_lengths: Array
    via: NDArray[np.int64]


class PushTExpert:
    """PushT's expert."""

    def act(self, env: gymnasium.Env[Any, Any]) -> NDArray[np.float32]:
        """Return the disc's next target, (2,), in [0, 512] and within `LEAD`."""
        inner = env.unwrapped
        try:
            tee, disc, goal = inner.block, inner.agent.position, inner.goal_pose
        except AttributeError as error:
            raise ConfigError(f"PushT's expert can't act in {inner}: {error}.") from error
        target = next_target(
            pose_at(np.array([*tee.position]), tee.angle), pose_at(goal[:2], goal[2]), np.array([*disc])
        )
        return target.astype(np.float32)


def next_target(tee: Array, goal: Array, disc: Array) -> Array:
    """Return the disc's next target, (2,), to move the T from pose `tee` (3,) to `goal` (3,)."""
    pushes = _candidate_pushes(tee, disc)
    remaining = distance(tee, goal)
    step = float(np.clip(remaining / _STEPS_TO_GOAL, *_STEP))
    poses = push(tee, pushes.starts, pushes.directions, step, _STOPS)
    lengths = step * np.arange(_STOPS + 1)[:, None]
    ends = pushes.starts + lengths[..., None] * pushes.directions
    gain = (remaining - distance(poses, goal)) / (pushes.path_lengths + lengths + _PUSH_COST)
    gain[((ends < 0) | (ends > 512)).any(-1)] = -np.inf
    stop, best = np.unravel_index(gain.argmax(), gain.shape)
    target = ends[stop, best]
    if pushes.via[best] != _NO_STAND and pushes.path_lengths[best] > _STAND_REACHED + STAND_OFF:
        target = to_world(stands().places[pushes.via[best]], tee)
    offset = target - disc
    limited: Array = disc + offset * min(1.0, LEAD / max(float(np.hypot(*offset)), 1e-9))
    return np.clip(limited, 0.0, 512.0)


def distance(poses: Array, goal: Array) -> Array:
    """Return the distance of poses (…, 3) from `goal` (3,), in pixels: (…)."""
    turn = np.abs((poses[..., 2] - goal[2] + pi) % (2 * pi) - pi)
    result: Array = np.hypot(poses[..., 0] - goal[0], poses[..., 1] - goal[1]) + _PIXELS_PER_RADIAN * turn
    return result


def _candidate_pushes(tee: Array, disc: Array) -> Pushes:
    all_stands = stands()
    lengths, first = ways(tee, disc)
    touching = to_world(all_stands.places + STAND_OFF * all_stands.inward, tee)
    inward = np.arctan2(all_stands.inward[:, 1], all_stands.inward[:, 0]) + tee[2]
    angles = (inward + _TILTS[:, None]).ravel()
    free_angles = np.linspace(0.0, 2 * pi, _DIRECTIONS, endpoint=False)
    starts, travelled, touches = _first_contacts(tee, disc, _unit_vectors(free_angles))
    path_lengths = np.concatenate(
        [np.tile(lengths + STAND_OFF, len(_TILTS)), np.where(touches, travelled, np.inf)]
    )
    reachable = np.isfinite(path_lengths)
    return Pushes(
        np.concatenate([np.tile(touching, (len(_TILTS), 1)), starts])[reachable],
        _unit_vectors(np.concatenate([angles, free_angles]))[reachable],
        path_lengths[reachable],
        np.concatenate([np.tile(first, len(_TILTS)), np.full(_DIRECTIONS, _NO_STAND)])[reachable],
    )


def _first_contacts(tee: Array, disc: Array, directions: Array) -> tuple[Array, Array, NDArray[np.bool_]]:
    """Return the disc's first contacts in `directions` (D, 2), their distances, and whether they are in range."""
    positions = np.repeat(disc[None], len(directions), 0)
    travelled = np.zeros(len(directions))
    for _ in range(5):  # sphere tracing
        free = np.maximum(nearest_on_tee(to_tee(positions, tee))[1] - RADIUS, 0.0)
        positions, travelled = positions + free[:, None] * directions, travelled + free
    return positions, travelled, (free < 1.0) & (travelled < _CONTACT_RANGE)


def _unit_vectors(angles: Array) -> Array:
    return np.stack([np.cos(angles), np.sin(angles)], -1)

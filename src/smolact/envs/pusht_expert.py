"""The scripted expert of gym-pusht: at every step it compares pushes and goes about the best of them.

It has no memory, as no expert here has. At each step it computes what some two hundred straight pushes would do to the T
(`tee_pushing.py`): from stands all around it, and on from where the disc is. Of each it takes the stop that gains most for
the way that it costs, the walk around the T included (`tee_ways.py`); towards the best it takes one step. What was begun
stays the best, since the way to it is already behind; and after a disturbance something else may be.

It reads the environment and simulates nothing in it.
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

PUSHT_ID = "gym_pusht/PushT-v0"

LEAD = 32.0
"""How far ahead of the disc an action is at most. The disc follows like a damped spring, about half of that a step."""

_TILTS = np.radians([-25.0, 0.0, 25.0])  # of a push from a stand, against the T's normal
_DIRECTIONS = 24  # of pushes from where the disc is
_AT_HAND = 25.0  # the disc is that near to what it pushes on from where it is
_STOPS = 32  # of a push that are compared
_STEPS_TO_GOAL = 25.0  # between two stops is this share of what is left
_STEP = (0.5, 4.0)  # between two stops, at least and at most
_TURNING = 60.0  # a radian is as bad as so many pixels
_OVERHEAD = 25.0  # pixels of way that every push costs beside its own
_ON_THE_STAND = 8.0
_NOWHERE = -1


@dataclass(frozen=True)
class Pushes:
    """P straight pushes that could be made.

    Attributes:
        starts: (P, 2), where the disc begins to touch.
        directions: (P, 2), unit vectors.
        ways: (P,), the disc's way to the start.
        via: (P,), the stand to go to first, or −1 for a push from where the disc is.
    """

    starts: Array
    directions: Array
    ways: Array
    via: NDArray[np.int64]


class PushTExpert:
    """Pushes the T onto its target."""

    def act(self, env: gymnasium.Env[Any, Any]) -> NDArray[np.float32]:
        """Where the disc should go, (2,), in [0, 512] and at most `LEAD` from where it is."""
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
    """Where to send the disc, (2,), for the T to get from pose `tee` (3,) to `goal` (3,)."""
    pushes = _pushes(tee, disc)
    left = distance(tee, goal)
    step = float(np.clip(left / _STEPS_TO_GOAL, *_STEP))
    poses = push(tee, pushes.starts, pushes.directions, step, _STOPS)
    lengths = step * np.arange(_STOPS + 1)[:, None]
    ends = pushes.starts + lengths[..., None] * pushes.directions
    gain = (left - distance(poses, goal)) / (pushes.ways + lengths + _OVERHEAD)
    gain[((ends < 0) | (ends > 512)).any(-1)] = -np.inf
    stop, best = np.unravel_index(gain.argmax(), gain.shape)
    target = ends[stop, best]
    if pushes.via[best] != _NOWHERE and pushes.ways[best] > _ON_THE_STAND + STAND_OFF:
        target = to_world(stands().places[pushes.via[best]], tee)
    way = target - disc
    there: Array = disc + way * min(1.0, LEAD / max(float(np.hypot(*way)), 1e-9))
    return np.clip(there, 0.0, 512.0)


def distance(poses: Array, goal: Array) -> Array:
    """How far poses (…, 3) are from `goal` (3,), in pixels: (…)."""
    turn = np.abs((poses[..., 2] - goal[2] + pi) % (2 * pi) - pi)
    away: Array = np.hypot(poses[..., 0] - goal[0], poses[..., 1] - goal[1]) + _TURNING * turn
    return away


def _pushes(tee: Array, disc: Array) -> Pushes:
    known = stands()
    lengths, first = ways(tee, disc)
    touching = to_world(known.places + STAND_OFF * known.inward, tee)
    inward = np.arctan2(known.inward[:, 1], known.inward[:, 0]) + tee[2]
    angles = (inward + _TILTS[:, None]).ravel()
    ahead = np.linspace(0.0, 2 * pi, _DIRECTIONS, endpoint=False)
    starts, gone, meets = _as_far_as_the_tee(tee, disc, _unit(ahead))
    all_ways = np.concatenate([np.tile(lengths + STAND_OFF, len(_TILTS)), np.where(meets, gone, np.inf)])
    can = np.isfinite(all_ways)
    return Pushes(
        np.concatenate([np.tile(touching, (len(_TILTS), 1)), starts])[can],
        _unit(np.concatenate([angles, ahead]))[can],
        all_ways[can],
        np.concatenate([np.tile(first, len(_TILTS)), np.full(_DIRECTIONS, _NOWHERE)])[can],
    )


def _as_far_as_the_tee(tee: Array, disc: Array, directions: Array) -> tuple[Array, Array, NDArray[np.bool_]]:
    """Where the disc first touches on its way in `directions` (D, 2), how far that is, and whether it is at hand."""
    places = np.repeat(disc[None], len(directions), 0)
    gone = np.zeros(len(directions))
    for _ in range(5):  # each time as far as is free all around
        free = np.maximum(nearest_on_tee(to_tee(places, tee))[1] - RADIUS, 0.0)
        places, gone = places + free[:, None] * directions, gone + free
    return places, gone, (free < 1.0) & (gone < _AT_HAND)


def _unit(angles: Array) -> Array:
    return np.stack([np.cos(angles), np.sin(angles)], -1)

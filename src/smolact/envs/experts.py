"""Scripted experts, which demonstrate a task from the environment's state instead of its image.

An expert is stateless: its action is a function of the state, so it stays correct after a disturbance at any step. The
tabletop's expert is here, PushT's in `pusht_expert.py`; an environment names its own in `KnownEnv.expert`.
"""

from __future__ import annotations

from math import hypot
from typing import Any, Protocol

import gymnasium
import numpy as np
from numpy.typing import NDArray

from smolact.envs.factory import env_id, known_env
from smolact.envs.tabletop import Tabletop
from smolact.envs.tabletop_language import REACH_DISTANCE, Goal
from smolact.envs.tabletop_scene import (
    BLOCK_SIDE,
    MAX_STEP,
    PUSHER_RADIUS,
    ZONE_RADIUS,
    ZONES,
    Block,
    TableState,
    within_reach,
)
from smolact.errors import ConfigError
from smolact.registry import ENVIRONMENTS

Vector = tuple[float, float]


class ScriptedExpert(Protocol):
    """A scripted policy for one environment.

    An attribute `noise` (`ActionNoise`), if it has one, is the disturbance that its demonstrations bear.
    """

    def act(self, env: gymnasium.Env[Any, Any]) -> NDArray[np.float32]:
        """Return the action for the environment's present state, (A,), in its own units."""
        ...


def expert_for(name: str) -> ScriptedExpert:
    """Return the scripted expert of an environment, by its short name or gymnasium id.

    Raises:
        ConfigError: it has no expert, or the distribution that provides the environment is broken.
    """
    path = known_env(name).expert
    if path is None:
        shown = ", ".join(
            f"{each} ({env_id(each)})" for each in ENVIRONMENTS.builtin if known_env(each).expert is not None
        )
        raise ConfigError(
            f"There is no scripted expert for '{name}', only for {shown}. An expert of your own is a class with `act(env)`: "
            "docs/environments.md records one's episodes in ten lines of Python."
        )
    expert: ScriptedExpert = ENVIRONMENTS.part_of(name, path)()
    return expert


class TabletopExpert:
    """The tabletop's expert: it avoids blocks on its path, pushes from behind, and corrects its course."""

    def act(self, env: gymnasium.Env[Any, Any]) -> NDArray[np.float32]:
        """Return the pusher's target for the next step, (2,), in table sides."""
        tabletop = env.unwrapped
        if not isinstance(tabletop, Tabletop):
            raise ConfigError(f"The tabletop's expert can't act in {tabletop}.")
        return np.array(tabletop_action(tabletop.state, tabletop.goal), np.float32)

    def steps_left(self, env: gymnasium.Env[Any, Any]) -> float:
        """Return about how many steps are left (`smolact.envs.supervision`): on straight lines, around no block."""
        tabletop = env.unwrapped
        assert isinstance(tabletop, Tabletop)
        return tabletop_steps_left(tabletop.state, tabletop.goal)


# Parameters of the tabletop's expert. Lengths in table sides.
_CLEARANCE = 0.5 * BLOCK_SIDE * 2**0.5 + PUSHER_RADIUS + 0.01  # from a block's centre, on a path around it
_REACHED = REACH_DISTANCE - 0.015  # where a reach ends
_PUSH_START = _CLEARANCE + 0.005  # where a push starts
_PUSH_STEP = 0.8 * MAX_STEP  # below the top speed, to keep the block in front
_MAX_LATERAL = 0.45  # largest lateral offset at the start of a push, as a share of the distance


def tabletop_action(state: TableState, goal: Goal) -> Vector:
    """Return the pusher's next position, at most `MAX_STEP` from its present one."""
    block = state.block(goal.color)
    if goal.place is None:
        side = _unit(state.pusher[0] - block.x, state.pusher[1] - block.y)
        others = [other for other in state.blocks if other is not block]
        return _step_around(state, (block.x + side[0] * _REACHED, block.y + side[1] * _REACHED), others)
    return _push(state, block, ZONES[goal.place])


def tabletop_steps_left(state: TableState, goal: Goal) -> float:
    """Return the steps of the pusher to the block or behind it, and of the block to its zone, on straight lines; 0 at the goal."""
    if goal.holds(state):
        return 0.0
    block = state.block(goal.color)
    if goal.place is None:
        return max(state.distance_to(block) - _REACHED, 0.0) / MAX_STEP
    place = ZONES[goal.place]
    ahead = _unit(place[0] - block.x, place[1] - block.y)
    pushed = max(hypot(place[0] - block.x, place[1] - block.y) - ZONE_RADIUS, 0.0) / _PUSH_STEP
    if _is_behind(*_along_and_lateral(ahead, block.x - state.pusher[0], block.y - state.pusher[1])):
        return pushed
    start = within_reach(block.x - _PUSH_START * ahead[0], block.y - _PUSH_START * ahead[1])
    return pushed + hypot(start[0] - state.pusher[0], start[1] - state.pusher[1]) / MAX_STEP


def _is_behind(behind: float, lateral: float) -> bool:
    """Whether a pusher at this place relative to a block may push it."""
    return behind < _PUSH_START + MAX_STEP and abs(lateral) < _MAX_LATERAL * behind


def _push(state: TableState, block: Block, place: Vector) -> Vector:
    ahead = _unit(place[0] - block.x, place[1] - block.y)
    behind, lateral = _along_and_lateral(ahead, block.x - state.pusher[0], block.y - state.pusher[1])
    if _is_behind(behind, lateral):
        forward = min(_PUSH_STEP, hypot(place[0] - block.x, place[1] - block.y))
        # Return to the line at once, or the block slips off to the side.
        step = (ahead[0] * forward - ahead[1] * lateral, ahead[1] * forward + ahead[0] * lateral)
        return _step(state, step)
    start = block.x - _PUSH_START * ahead[0], block.y - _PUSH_START * ahead[1]
    # A block at the start point is pushed away; otherwise the pusher would circle it forever.
    others = [other for other in state.blocks if hypot(other.x - start[0], other.y - start[1]) > _CLEARANCE]
    return _step_around(state, start, others)


def _step_around(state: TableState, target: Vector, blocks: list[Block]) -> Vector:
    """Take one step towards `target` that passes `blocks` at `_CLEARANCE`."""
    x, y = state.pusher
    target = within_reach(*target)
    remaining = hypot(target[0] - x, target[1] - y)
    direction = _unit(target[0] - x, target[1] - y)
    for block in sorted(blocks, key=state.distance_to):
        along, lateral = _along_and_lateral(direction, block.x - x, block.y - y)
        if 0 < along < remaining + 0.5 * _CLEARANCE and abs(lateral) < _CLEARANCE:
            direction, remaining = _tangent(state, block, side=-1.0 if lateral > 0 else 1.0), MAX_STEP
            break
    length = min(MAX_STEP, remaining)
    return _step(state, (direction[0] * length, direction[1] * length))


def _tangent(state: TableState, block: Block, side: float) -> Vector:
    """Return the direction that just passes the block on its right in the image (side = 1) or its left (−1)."""
    away_x, away_y = block.x - state.pusher[0], block.y - state.pusher[1]
    distance = hypot(away_x, away_y)
    towards = _unit(away_x, away_y)
    sine = min(1.0, _CLEARANCE / max(distance, 1e-6))
    # Within the clearance there is no tangent: move sideways and slightly outwards.
    cosine = (1.0 - sine * sine) ** 0.5 if distance > _CLEARANCE else -(1.0 - distance / _CLEARANCE)
    return _unit(
        towards[0] * cosine - side * towards[1] * sine,
        towards[1] * cosine + side * towards[0] * sine,
    )


def _along_and_lateral(direction: Vector, x: float, y: float) -> Vector:
    """Return the components of (x, y) along the unit vector `direction` and to its right in the image."""
    return x * direction[0] + y * direction[1], y * direction[0] - x * direction[1]


def _step(state: TableState, step: Vector) -> Vector:
    length = max(hypot(*step) / MAX_STEP, 1.0)
    return within_reach(state.pusher[0] + step[0] / length, state.pusher[1] + step[1] / length)


def _unit(x: float, y: float) -> Vector:
    length = max(hypot(x, y), 1e-9)
    return x / length, y / length

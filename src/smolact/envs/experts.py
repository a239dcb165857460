"""Scripted experts: they see the environment's state, not its picture, and show a policy what to do.

An expert has no memory: its action is a function of the state, so a demonstration can be disturbed at any step and the
expert's next action is still the right one. The tabletop's is here, PushT's in `pusht_expert.py`. Add one for another
environment to `_EXPERTS`.
"""

from __future__ import annotations

from collections.abc import Callable
from math import hypot
from typing import Any, Protocol

import gymnasium
import numpy as np
from numpy.typing import NDArray

from smolact.envs.factory import KNOWN
from smolact.envs.pusht_expert import PUSHT_ID, PushTExpert
from smolact.envs.tabletop import TABLETOP_ID, Tabletop
from smolact.envs.tabletop_language import REACH_DISTANCE, Goal
from smolact.envs.tabletop_scene import (
    BLOCK_SIDE,
    MAX_STEP,
    PUSHER_RADIUS,
    ZONES,
    Block,
    TableState,
    within_reach,
)
from smolact.errors import ConfigError

Vector = tuple[float, float]


class ScriptedExpert(Protocol):
    """Knows what to do in an environment."""

    def act(self, env: gymnasium.Env[Any, Any]) -> NDArray[np.float32]:
        """The action for the environment's present state, (A,), in the environment's own units."""
        ...


def expert_for(env_id: str) -> ScriptedExpert:
    """The scripted expert of a gymnasium id.

    Raises:
        ConfigError: nobody wrote one.
    """
    if env_id not in _EXPERTS:
        shown = ", ".join(f"{name} ({known.id})" for name, known in KNOWN.items() if known.id in _EXPERTS)
        raise ConfigError(
            f"There is no scripted expert for '{env_id}', only for {shown}. An expert of your own is a class with `act(env)`: "
            "docs/environments.md records one's episodes in ten lines of Python."
        )
    return _EXPERTS[env_id]()


class TabletopExpert:
    """Reaches by the free way; pushes from behind the block, and steers while it pushes."""

    def act(self, env: gymnasium.Env[Any, Any]) -> NDArray[np.float32]:
        """Where the pusher should be a step from now, (2,), in table sides."""
        tabletop = env.unwrapped
        if not isinstance(tabletop, Tabletop):
            raise ConfigError(f"The tabletop's expert can't act in {tabletop}.")
        return np.array(tabletop_action(tabletop.state, tabletop.goal), np.float32)


_EXPERTS: dict[str, Callable[[], ScriptedExpert]] = {TABLETOP_ID: TabletopExpert, PUSHT_ID: PushTExpert}

# How the tabletop's expert moves. Lengths in table sides.
_CLEARANCE = 0.5 * BLOCK_SIDE * 2**0.5 + PUSHER_RADIUS + 0.01  # from a block's centre when going around it
_NEXT_TO = REACH_DISTANCE - 0.015  # where reaching ends
_BEHIND = _CLEARANCE + 0.005  # where pushing begins
_PUSH_STEP = 0.8 * MAX_STEP  # slower than it could, to keep the block in front
_IN_LINE = 0.45  # pushing begins when the pusher is this much aside at most, as a share of its distance


def tabletop_action(state: TableState, goal: Goal) -> Vector:
    """The expert's next position for the pusher: at most `MAX_STEP` from where it is."""
    block = state.block(goal.color)
    if goal.place is None:
        side = _unit(state.pusher[0] - block.x, state.pusher[1] - block.y)
        others = [other for other in state.blocks if other is not block]
        return _step_around(state, (block.x + side[0] * _NEXT_TO, block.y + side[1] * _NEXT_TO), others)
    return _push(state, block, ZONES[goal.place])


def _push(state: TableState, block: Block, place: Vector) -> Vector:
    ahead = _unit(place[0] - block.x, place[1] - block.y)
    behind, aside = _along_and_aside(ahead, block.x - state.pusher[0], block.y - state.pusher[1])
    if behind < _BEHIND + MAX_STEP and abs(aside) < _IN_LINE * behind:
        forward = min(_PUSH_STEP, hypot(place[0] - block.x, place[1] - block.y))
        # Back onto the line at once, or the block slips off to the side that it is already on.
        step = (ahead[0] * forward - ahead[1] * aside, ahead[1] * forward + ahead[0] * aside)
        return _step(state, step)
    start = block.x - _BEHIND * ahead[0], block.y - _BEHIND * ahead[1]
    # A block that lies where the pusher has to stand is shoved away rather than circled for ever.
    around = [other for other in state.blocks if hypot(other.x - start[0], other.y - start[1]) > _CLEARANCE]
    return _step_around(state, start, around)


def _step_around(state: TableState, target: Vector, blocks: list[Block]) -> Vector:
    """One step towards `target` that passes `blocks` at `_CLEARANCE`."""
    x, y = state.pusher
    target = within_reach(*target)
    left = hypot(target[0] - x, target[1] - y)
    way = _unit(target[0] - x, target[1] - y)
    for block in sorted(blocks, key=state.distance_to):
        along, aside = _along_and_aside(way, block.x - x, block.y - y)
        if 0 < along < left + 0.5 * _CLEARANCE and abs(aside) < _CLEARANCE:
            way, left = _tangent(state, block, side=-1.0 if aside > 0 else 1.0), MAX_STEP
            break
    pace = min(MAX_STEP, left)
    return _step(state, (way[0] * pace, way[1] * pace))


def _tangent(state: TableState, block: Block, side: float) -> Vector:
    """The direction that just passes the block, to its right in the picture (side = 1) or its left (−1)."""
    away_x, away_y = block.x - state.pusher[0], block.y - state.pusher[1]
    distance = hypot(away_x, away_y)
    towards = _unit(away_x, away_y)
    sine = min(1.0, _CLEARANCE / max(distance, 1e-6))
    # Within the clearance there is no tangent: go across, and a little out.
    cosine = (1.0 - sine * sine) ** 0.5 if distance > _CLEARANCE else -(1.0 - distance / _CLEARANCE)
    return _unit(
        towards[0] * cosine - side * towards[1] * sine,
        towards[1] * cosine + side * towards[0] * sine,
    )


def _along_and_aside(way: Vector, x: float, y: float) -> Vector:
    """(x, y) in the frame of the unit vector `way`: how far along it, and how far to its right in the picture."""
    return x * way[0] + y * way[1], y * way[0] - x * way[1]


def _step(state: TableState, step: Vector) -> Vector:
    length = max(hypot(*step) / MAX_STEP, 1.0)
    return within_reach(state.pusher[0] + step[0] / length, state.pusher[1] + step[1] / length)


def _unit(x: float, y: float) -> Vector:
    length = max(hypot(x, y), 1e-9)
    return x / length, y / length

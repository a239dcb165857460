"""The last gate before the motors: actions must be finite, within limits, near the position, and recent.

    finite -> limits -> largest step of a control tick -> age

A chunk passes whole or not at all (`check_chunk`): a chunk refused after its first half would stop the robot in mid-motion.
Teleoperated actions are clamped to the same limits (`clamp`) instead of refused. Both functions are pure; a `Gate` stores the
limits and the last position sent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from smolact.errors import ConfigError, UnsafeActionError, did_you_mean

Vector = NDArray[np.float32]

SLACK = 0.05
"""Share of its range by which a value may lie outside and is clipped; policies overshoot a little."""
MAX_AGE_S = 2.0
"""The maximum age of a chunk's observation."""
MAX_STEP = 30.0
"""Degrees, or percent of the range, that a joint may move in one tick: above a hand's motion, below a jump."""
LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class JointLimits:
    """Limits of each number of an action, and of its change per step.

    Attributes:
        names: the numbers' names, in order: (A,).
        low, high: (A,) float32, in the robot's own units; -inf and inf where unknown.
        step: (A,) float32, the largest change in one control tick; inf for none.
        max_age: maximum seconds from an observation to the start of its chunk; inf for none.
        slack: share of its range by which a value may lie outside and is clipped.
    """

    names: tuple[str, ...]
    low: Vector
    high: Vector
    step: Vector
    max_age: float = MAX_AGE_S
    slack: float = SLACK

    def __post_init__(self) -> None:
        size = (len(self.names),)
        for label, values in (("low", self.low), ("high", self.high), ("step", self.step)):
            if values.shape != size or values.dtype != np.float32 or np.isnan(values).any():
                raise ConfigError(
                    f"Limits of {size[0]} numbers need {label} as {size} float32 without NaN, "
                    f"found {values.shape} {values.dtype}."
                )
        for at in np.flatnonzero(~(self.low < self.high)):
            raise ConfigError(
                f"The limits of '{self.names[at]}' are [{self.low[at]:g}, {self.high[at]:g}]: "
                "the lower one must be below the upper one."
            )
        for at in np.flatnonzero(~(self.step > 0)):
            raise ConfigError(
                f"The largest step of '{self.names[at]}' is {self.step[at]:g}: it must be above 0."
            )
        if not 0 <= self.slack < math.inf:
            raise ConfigError(f"The slack of limits is {self.slack}: it is a share of a range, 0 or more.")
        if not self.max_age > 0:
            raise ConfigError(f"The largest age of a chunk is {self.max_age} s: it must be above 0.")


def make_limits(
    names: Sequence[str],
    ranges: Mapping[str, tuple[float, float]],
    steps: float | Mapping[str, float],
    max_age: float = MAX_AGE_S,
    slack: float = SLACK,
) -> JointLimits:
    """Make limits from values by name.

    Args:
        names: the numbers of an action, in order.
        ranges: (low, high) of some of them; the others have none.
        steps: the largest step of all, or of some by name.
        max_age: seconds.
        slack: see `JointLimits`.

    Raises:
        ConfigError: a name that the action does not have, or invalid limits.
    """
    by_name = steps if isinstance(steps, Mapping) else dict.fromkeys(names, steps)
    for key in (*ranges, *by_name):
        if key not in names:
            raise ConfigError(
                f"There is no '{key}' in this robot's actions.{did_you_mean(key, names)} There are: {', '.join(names)}."
            )
    bounds = np.array([ranges.get(name, (-math.inf, math.inf)) for name in names], np.float32)
    step = np.array([by_name.get(name, math.inf) for name in names], np.float32)
    return JointLimits(tuple(names), bounds[:, 0], bounds[:, 1], step, max_age, slack)


def choose_steps(
    names: Sequence[str], defaults: Mapping[str, float], max_step: float | Mapping[str, float] | None
) -> dict[str, float]:
    """Return the largest step of each number: the user's, for all or by name, before the defaults; 0 stands for none."""
    steps = dict(defaults)
    if isinstance(max_step, Mapping):
        steps |= max_step
    elif max_step is not None:
        steps = dict.fromkeys(names, max_step)
    return {name: math.inf if step == 0 else float(step) for name, step in steps.items()}


def limit_change(goal: float, present: float, largest: float) -> float:
    """Return the goal, or the nearest value to it that is at most `largest` from the present one."""
    return present + min(largest, max(-largest, goal - present))


def check_chunk(
    limits: JointLimits, chunk: ArrayLike, position: ArrayLike | None, age: float = 0.0
) -> Vector:
    """Return the chunk as it may be executed.

    Args:
        limits: the robot's limits.
        chunk: one action per tick, (T, A), in the robot's units.
        position: the robot's position, or the last one sent, (A,). Where NaN or None, the first step is not checked.
        age: seconds since the chunk's observation.

    Returns:
        the chunk, (T, A) float32, with values outside their range by at most `slack` clipped to the limit.

    Raises:
        UnsafeActionError: any other violation; the message names the number, the tick and the limit.
    """
    names = limits.names
    actions = _as_floats(chunk)
    if actions is None or actions.ndim != 2 or actions.shape[1] != len(names) or not len(actions):
        found = "something that is no array of numbers" if actions is None else f"an array of {actions.shape}"
        raise UnsafeActionError(
            f"A chunk for this robot is (ticks, {len(names)}) numbers, found {found}. Nothing was sent."
        )
    invalid = ~(np.abs(actions) <= LARGEST)
    if invalid.any():
        raise _refusal(
            names, actions, invalid, lambda at, _: "not finite in float32. Look at the policy's statistics"
        )
    slack = _slack_widths(limits)
    invalid = (actions < limits.low - slack) | (actions > limits.high + slack)
    if invalid.any():
        raise _refusal(
            names,
            actions,
            invalid,
            lambda at, _: f"outside its limits [{limits.low[at]:g}, {limits.high[at]:g}] (--robot.limits)",
        )
    safe = np.clip(actions, limits.low, limits.high).astype(np.float32)
    start = _start_position(limits, position)
    path = np.concatenate([safe[:1] if start is None else start[None], safe]).astype(np.float64)
    invalid = np.abs(np.diff(path, axis=0)) > limits.step
    if invalid.any():
        raise _refusal(
            names,
            actions,
            invalid,
            lambda at, tick: (
                f"more than its largest step of {limits.step[at]:g} a tick away. {_step_advice(tick)}, or allow more with --robot.max_step"
            ),
        )
    if not (math.isfinite(age) and age <= limits.max_age):
        raise UnsafeActionError(
            f"The chunk answers an observation that is {age:.2f} s old; the most allowed is {limits.max_age:g} s "
            "(--robot.max_action_age). Nothing was sent."
        )
    return safe


def clamp(limits: JointLimits, action: ArrayLike, position: ArrayLike | None) -> Vector:
    """Return the nearest action that `check_chunk` accepts: within the limits, and at most a step from `position`.

    Args:
        limits: the robot's limits.
        action: (A,), in the robot's units.
        position: as in `check_chunk`.

    Raises:
        UnsafeActionError: the action has another size or is not finite.
    """
    values = _as_floats(action)
    if values is None or values.shape != (len(limits.names),) or not np.isfinite(values).all():
        found = "something that is no array of numbers" if values is None else str(values.tolist())
        raise UnsafeActionError(
            f"An action of this robot is {len(limits.names)} finite numbers, found {found}. Nothing was sent."
        )
    wanted = np.clip(np.clip(values, limits.low, limits.high), -LARGEST, LARGEST)
    previous = _start_position(limits, position)
    if previous is None:
        return wanted.astype(np.float32)
    previous = np.where(np.isnan(previous), wanted.astype(np.float32), previous)
    start = previous.astype(np.float64)
    limited = np.clip(wanted, start - limits.step, start + limits.step).astype(np.float32)
    # Rounding to float32 may exceed the step slightly.
    exceeds = np.abs(limited.astype(np.float64) - start) > limits.step
    return np.where(exceeds, np.nextafter(limited, previous), limited).astype(np.float32)


class Gate:
    """The limits and position of one robot.

    Attributes:
        limits: limits of the actions.
        position: the last position sent, or the one read on connection, (A,) float32; NaN where unknown.
    """

    def __init__(self, limits: JointLimits) -> None:
        self.limits = limits
        self.position: Vector = np.full(len(limits.names), np.nan, np.float32)

    def check_chunk(self, chunk: ArrayLike, age: float = 0.0) -> Vector:
        """Call `check_chunk` on a chunk that starts at the robot's position; sends nothing."""
        return check_chunk(self.limits, chunk, self.position, age)

    admit = check_chunk
    """The earlier name of `check_chunk`."""

    def check_position(self) -> None:
        """Raise an `UnsafeActionError` if the robot stands outside its limits, where every action would be refused."""
        _start_position(self.limits, self.position)

    def clamp(self, action: ArrayLike) -> Vector:
        """Call `clamp` on an action from the robot's position; sends nothing."""
        return clamp(self.limits, action, self.position)


def _as_floats(values: ArrayLike) -> NDArray[np.float64] | None:
    try:
        array: NDArray[Any] = np.asarray(values)
        return array.astype(np.float64) if array.dtype.kind in "fiu" else None
    except (TypeError, ValueError):
        return None


def _slack_widths(limits: JointLimits) -> NDArray[np.float64]:
    width = np.subtract(limits.high, limits.low, dtype=np.float64)
    return limits.slack * np.where(np.isfinite(width), width, 0.0)


def _start_position(limits: JointLimits, position: ArrayLike | None) -> Vector | None:
    """Return the position before the first step. A robot slightly outside its limits starts at them."""
    if position is None:
        return None
    values = _as_floats(position)
    if (
        values is None
        or values.shape != (len(limits.names),)
        or not ((np.abs(values) <= LARGEST) | np.isnan(values)).all()
    ):
        raise UnsafeActionError(
            f"Where the robot is must be {len(limits.names)} finite numbers, found {position}. Nothing was sent."
        )
    slack = _slack_widths(limits)
    outside = [
        f"'{limits.names[at]}' stands at {values[at]:g}, outside its limits [{limits.low[at]:g}, {limits.high[at]:g}]"
        for at in np.flatnonzero((values < limits.low - slack) | (values > limits.high + slack))
    ]
    if outside:
        raise UnsafeActionError(
            f"The robot's {'; its '.join(outside)}. Move it back by hand, allow more with --robot.limits, or calibrate it again. "
            "Nothing was sent."
        )
    return np.clip(values, limits.low, limits.high).astype(np.float32)


def _step_advice(tick: int) -> str:
    """Return advice about a too large step, which depends on its tick in the chunk."""
    if tick == 0:
        return "Bring the robot nearer to where the motion begins"
    return "The policy leaps in the middle of its motion, as one does that has trained too little: train it longer"


def _refusal(
    names: Sequence[str], chunk: NDArray[Any], invalid: NDArray[np.bool_], reason: Any
) -> UnsafeActionError:
    tick, at = (int(index) for index in np.argwhere(invalid)[0])
    count = int(invalid.sum())
    more = f" So are {count - 1} other numbers of it." if count > 1 else ""
    return UnsafeActionError(
        f"Tick {tick} of {len(chunk)} sends '{names[at]}' to {chunk[tick, at]:g}: {reason(at, tick)}.{more} "
        "The whole chunk was refused; nothing of it was sent."
    )

"""The last gate before the motors: what passes is finite, within limits, near where the robot is, and not stale.

    finite -> limits -> largest step of a control tick -> age

A chunk passes whole or not at all (`check_chunk`): its first half, executed before its second was refused, would leave the
robot in the middle of a motion that nobody planned. What a person moves by hand is held to the same limits (`clamp`)
instead of being refused. Both are pure; a `Gate` keeps the limits and where the robot was sent last.
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
"""By what share of its range a value may lie outside and is set to the limit; policies overshoot by a little."""
MAX_AGE_S = 2.0
"""The oldest observation that a chunk may answer."""
LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class JointLimits:
    """What each number of an action may be, and how far it may be from the one before.

    Attributes:
        names: the numbers' names, in order: (A,).
        low, high: (A,) float32, the robot's own units; -inf and inf where nothing is known.
        step: (A,) float32, the largest change in one control tick; inf for none.
        max_age: seconds between an observation and the moment that its chunk is begun; inf for none.
        slack: by what share of its range a value may lie outside and is set to the limit.
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
    """Limits from what is known by name.

    Args:
        names: the numbers of an action, in order.
        ranges: (low, high) of some of them; the others have none.
        steps: the largest step of all, or of some by name.
        max_age: seconds.
        slack: see `JointLimits`.

    Raises:
        ConfigError: a name that the action does not have, or limits that can't work.
    """
    by_name = steps if isinstance(steps, Mapping) else dict.fromkeys(names, steps)
    for given in (*ranges, *by_name):
        if given not in names:
            raise ConfigError(
                f"There is no '{given}' in this robot's actions.{did_you_mean(given, names)} There are: {', '.join(names)}."
            )
    within = np.array([ranges.get(name, (-math.inf, math.inf)) for name in names], np.float32)
    step = np.array([by_name.get(name, math.inf) for name in names], np.float32)
    return JointLimits(tuple(names), within[:, 0], within[:, 1], step, max_age, slack)


def check_chunk(
    limits: JointLimits, chunk: ArrayLike, position: ArrayLike | None, age: float = 0.0
) -> Vector:
    """The chunk as it may be executed.

    Args:
        limits: of the robot.
        chunk: actions to be executed one a tick, (T, A), in the robot's units.
        position: where the robot is, or was last sent, (A,). The first step is not checked where that is not known:
            NaN in it, or None.
        age: seconds since the observation that the chunk answers.

    Returns:
        the chunk, (T, A) float32, in which values outside their range by less than the limits' `slack` of it are at the limit.

    Raises:
        UnsafeActionError: anything else is wrong with any of it; the message names the number, the tick and the limit.
    """
    names = limits.names
    given = _as_floats(chunk)
    if given is None or given.ndim != 2 or given.shape[1] != len(names) or not len(given):
        found = "something that is no array of numbers" if given is None else f"an array of {given.shape}"
        raise UnsafeActionError(
            f"A chunk for this robot is (ticks, {len(names)}) numbers, found {found}. Nothing was sent."
        )
    wrong = ~(np.abs(given) <= LARGEST)
    if wrong.any():
        raise _refused(
            names, given, wrong, lambda at, _: "not finite in float32. Look at the policy's statistics"
        )
    slack = _slack(limits)
    wrong = (given < limits.low - slack) | (given > limits.high + slack)
    if wrong.any():
        raise _refused(
            names,
            given,
            wrong,
            lambda at, _: f"outside its limits [{limits.low[at]:g}, {limits.high[at]:g}] (--robot.limits)",
        )
    safe = np.clip(given, limits.low, limits.high).astype(np.float32)
    before = _start(limits, position)
    path = np.concatenate([safe[:1] if before is None else before[None], safe]).astype(np.float64)
    wrong = np.abs(np.diff(path, axis=0)) > limits.step
    if wrong.any():
        raise _refused(
            names,
            given,
            wrong,
            lambda at, tick: (
                f"more than its largest step of {limits.step[at]:g} a tick away. {_leap(tick)}, or allow more with --robot.max_step"
            ),
        )
    if not (math.isfinite(age) and age <= limits.max_age):
        raise UnsafeActionError(
            f"The chunk answers an observation that is {age:.2f} s old; the most allowed is {limits.max_age:g} s "
            "(--robot.max_action_age). Nothing was sent."
        )
    return safe


def clamp(limits: JointLimits, action: ArrayLike, position: ArrayLike | None) -> Vector:
    """The action nearest to the asked one that `check_chunk` lets pass: within the limits, a step away from `position`.

    Args:
        limits: of the robot.
        action: (A,), in the robot's units.
        position: as in `check_chunk`.

    Raises:
        UnsafeActionError: the action has another size or is not finite.
    """
    given = _as_floats(action)
    if given is None or given.shape != (len(limits.names),) or not np.isfinite(given).all():
        found = "something that is no array of numbers" if given is None else str(given.tolist())
        raise UnsafeActionError(
            f"An action of this robot is {len(limits.names)} finite numbers, found {found}. Nothing was sent."
        )
    wanted = np.clip(np.clip(given, limits.low, limits.high), -LARGEST, LARGEST)
    before = _start(limits, position)
    if before is None:
        return wanted.astype(np.float32)
    before = np.where(np.isnan(before), wanted.astype(np.float32), before)
    start = before.astype(np.float64)
    moved = np.clip(wanted, start - limits.step, start + limits.step).astype(np.float32)
    # Rounding to float32 may take it a hair too far.
    too_far = np.abs(moved.astype(np.float64) - start) > limits.step
    return np.where(too_far, np.nextafter(moved, before), moved).astype(np.float32)


class Gate:
    """The limits of one robot, and where it is.

    Attributes:
        limits: what may pass.
        position: where it was sent last, or found when it was connected, (A,) float32; NaN where that is not known.
    """

    def __init__(self, limits: JointLimits) -> None:
        self.limits = limits
        self.position: Vector = np.full(len(limits.names), np.nan, np.float32)

    def check_chunk(self, chunk: ArrayLike, age: float = 0.0) -> Vector:
        """`check_chunk` a chunk that begins where the robot is; sends nothing."""
        return check_chunk(self.limits, chunk, self.position, age)

    def clamp(self, action: ArrayLike) -> Vector:
        """The `clamp` action that passes from where the robot is; sends nothing."""
        return clamp(self.limits, action, self.position)


def _as_floats(values: ArrayLike) -> NDArray[np.float64] | None:
    try:
        found: NDArray[Any] = np.asarray(values)
        return found.astype(np.float64) if found.dtype.kind in "fiu" else None
    except (TypeError, ValueError):
        return None


def _slack(limits: JointLimits) -> NDArray[np.float64]:
    width = np.subtract(limits.high, limits.low, dtype=np.float64)
    return limits.slack * np.where(np.isfinite(width), width, 0.0)


def _start(limits: JointLimits, position: ArrayLike | None) -> Vector | None:
    """Where the first step begins. A robot that sags a little out of its limits begins at them."""
    if position is None:
        return None
    found = _as_floats(position)
    if (
        found is None
        or found.shape != (len(limits.names),)
        or not ((np.abs(found) <= LARGEST) | np.isnan(found)).all()
    ):
        raise UnsafeActionError(
            f"Where the robot is must be {len(limits.names)} finite numbers, found {position}. Nothing was sent."
        )
    slack = _slack(limits)
    for at in np.flatnonzero((found < limits.low - slack) | (found > limits.high + slack)):
        raise UnsafeActionError(
            f"The robot's '{limits.names[at]}' stands at {found[at]:g}, outside its limits "
            f"[{limits.low[at]:g}, {limits.high[at]:g}]. Move it back by hand, or calibrate it again. Nothing was sent."
        )
    return np.clip(found, limits.low, limits.high).astype(np.float32)


def _leap(tick: int) -> str:
    """What to do about a step that is too large, which depends on where in a chunk it is."""
    if tick == 0:
        return "Bring the robot nearer to where the motion begins"
    return "The policy leaps in the middle of its motion, as one does that has trained too little: train it longer"


def _refused(
    names: Sequence[str], chunk: NDArray[Any], wrong: NDArray[np.bool_], why: Any
) -> UnsafeActionError:
    tick, at = (int(index) for index in np.argwhere(wrong)[0])
    count = int(wrong.sum())
    more = f" So are {count - 1} other numbers of it." if count > 1 else ""
    return UnsafeActionError(
        f"Tick {tick} of {len(chunk)} sends '{names[at]}' to {chunk[tick, at]:g}: {why(at, tick)}.{more} "
        "The whole chunk was refused; nothing of it was sent."
    )

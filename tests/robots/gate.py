"""What must hold of the last gate, whatever it is given; and a storm of cases without hypothesis, for a million of them."""

from __future__ import annotations

from collections import Counter

import numpy as np

from smolact.errors import UnsafeActionError
from smolact.robots.safety import JointLimits, check_chunk, clamp, make_limits

OPEN = ["--robot.max_step=0", "--robot.limits={action_0: [-9999, 9999], action_1: [-9999, 9999]}"]
"""A simulation's gate for policies that have learnt nothing: the environment itself brings their actions within its range."""


def holds(limits: JointLimits, path: np.ndarray, position: np.ndarray | None) -> None:
    """Every number of the actions `path` (T, A) float32 is finite, within limits and a step from the one before."""
    assert path.dtype == np.float32 and np.isfinite(path).all()
    assert (path >= limits.low).all() and (path <= limits.high).all()
    whole = path.astype(np.float64)
    if position is not None:
        begin = np.clip(position, limits.low, limits.high).astype(np.float32)
        whole = np.concatenate([begin[None].astype(np.float64), whole])
    assert not (np.abs(np.diff(whole, axis=0)) > limits.step).any()  # NaN: not known where it began


def check_one(limits: JointLimits, chunk: np.ndarray, position: np.ndarray, age: float) -> str:
    """Put a chunk through the gate; whatever passes is safe. Returns what happened."""
    outcome = "refused"
    for start in (position, None):
        try:
            passed = check_chunk(limits, chunk, start, age)
        except UnsafeActionError:
            continue
        holds(limits, passed, start)
        assert passed.shape == chunk.shape and age <= limits.max_age
        np.testing.assert_array_equal(
            check_chunk(limits, passed, start, age), passed
        )  # what passed passes again
        outcome = "passed"
    try:
        by_hand = clamp(limits, chunk[0], position)
    except UnsafeActionError:
        return outcome
    holds(limits, by_hand[None], position)
    np.testing.assert_array_equal(check_chunk(limits, by_hand[None], position), by_hand[None])
    return outcome


def storm(actions: int, seed: int) -> Counter[str]:
    """`actions` actions in random chunks, a share of them poisoned, through the gate; how many actions passed or not."""
    random = np.random.default_rng(seed)
    names = tuple(f"joint_{at}" for at in range(6))
    ranges = dict.fromkeys(names[:4], (-100.0, 100.0)) | {names[5]: (0.0, 100.0)}
    limits = make_limits(names, ranges, dict.fromkeys(names[:5], 15.0))
    poison = np.array([np.nan, np.inf, -np.inf, 1e39, -1e39, 3.5e38, 1e4, -1e4, 106.0, -0.5, 5e-324])
    count: Counter[str] = Counter()
    while count.total() < actions:
        ticks = int(random.integers(1, 51))
        start = random.uniform(0, 100, 6) + random.normal(0, 1, 6)
        chunk = start + np.cumsum(random.normal(0, random.choice([0.5, 3.0, 10.0]), (ticks, 6)), axis=0)
        chunk = np.where(random.random() < 0.5, np.clip(chunk, -101, 101), chunk)
        chunk[:, 5] = np.clip(chunk[:, 5], -2, 102)
        if random.random() < 0.5:
            chunk[random.integers(ticks), random.integers(6)] = random.choice(poison)
        count[check_one(limits, chunk, start, float(random.exponential(1.0)))] += ticks
    return count

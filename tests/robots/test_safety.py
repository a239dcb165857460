"""The last gate: nothing passes that is not finite, outside limits, too far or too old; refused chunks are refused whole."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smolact.errors import ConfigError, UnsafeActionError
from smolact.robots.safety import SLACK, JointLimits, check_chunk, clamp, make_limits
from tests.robots.gate import check_one

NAMES = ("pan.pos", "lift.pos", "gripper.pos")
LIMITS = make_limits(
    NAMES, {"pan.pos": (-100, 100), "gripper.pos": (0, 100)}, {"pan.pos": 10, "lift.pos": 10}
)
HOME = np.zeros(3, np.float32)


def test_a_chunk_within_limits_passes_as_it_is() -> None:
    chunk = np.array([[5, -5, 100], [10, 0, 0]], np.float32)
    passed = check_chunk(LIMITS, chunk, HOME)
    assert passed.dtype == np.float32
    np.testing.assert_array_equal(passed, chunk)


def test_a_little_overshoot_is_set_to_the_limit() -> None:
    assert check_chunk(LIMITS, [[0, 0, -100 * SLACK * 0.9]], HOME)[0, 2] == 0
    with pytest.raises(UnsafeActionError, match=r"'gripper.pos' to -5.1: outside its limits \[0, 100\]"):
        check_chunk(LIMITS, [[0, 0, -5.1]], HOME)


@pytest.mark.parametrize(
    ("chunk", "message"),
    [
        ([[0, math.nan, 0]], "'lift.pos' to nan: not finite"),
        ([[0, 0, 0], [0, -math.inf, 0]], "Tick 1 of 2 .* to -inf: not finite"),
        ([[0, 1e39, 0]], "not finite in float32"),
        ([[0, 0, 200]], r"outside its limits \[0, 100\]"),
        ([[11, 0, 0]], "largest step of 10 a tick away. Bring the robot nearer"),
        ([[5, 0, 0], [16, 0, 0]], "largest step of 10 a tick away. The policy leaps in the middle"),
        ([[9, 0, 0], [-9, 0, 0]], "Tick 1 of 2 sends 'pan.pos' to -9"),
        ([[0, 0]], r"\(ticks, 3\) numbers, found an array of \(1, 2\)"),
        ([0, 0, 0], r"found an array of \(3,\)"),
        (np.zeros((0, 3)), r"found an array of \(0, 3\)"),
        ([["a", "b", "c"]], "no array of numbers"),
        ([[None, 0, 0]], "no array of numbers"),
        ([[1j, 0, 0]], "no array of numbers"),
    ],
)
def test_one_wrong_number_refuses_the_whole_chunk(chunk: Any, message: str) -> None:
    with pytest.raises(UnsafeActionError, match=message):
        check_chunk(LIMITS, chunk, HOME)


@pytest.mark.parametrize("age", [2.01, math.inf, math.nan])
def test_a_stale_chunk_is_refused(age: float) -> None:
    check_chunk(LIMITS, HOME[None], HOME, age=1.99)
    with pytest.raises(UnsafeActionError, match="the most allowed is 2 s"):
        check_chunk(LIMITS, HOME[None], HOME, age=age)


def test_the_first_step_is_measured_from_where_the_robot_is() -> None:
    check_chunk(LIMITS, [[50, 0, 0]], [45, 0, 0])
    check_chunk(LIMITS, [[50, 0, 0]], None)
    with pytest.raises(UnsafeActionError, match="nearer to where the motion begins"):
        check_chunk(LIMITS, [[50, 0, 0]], HOME)


def test_a_robot_that_sags_out_of_its_limits_comes_back_and_one_far_outside_is_not_moved() -> None:
    check_chunk(LIMITS, [[91, 0, 0]], [105, 0, 0])
    np.testing.assert_array_equal(clamp(LIMITS, [50, 0, 0], [105, 0, 0]), [90, 0, 0])
    for act in (
        lambda: check_chunk(LIMITS, [[95, 0, 0]], [120, 0, 0]),
        lambda: clamp(LIMITS, [95, 0, 0], [120, 0, 0]),
    ):
        with pytest.raises(UnsafeActionError, match="stands at 120, outside its limits"):
            act()


def test_a_hand_moves_the_robot_as_far_as_its_limits_allow() -> None:
    np.testing.assert_array_equal(clamp(LIMITS, [500, -500, 500], HOME), [10, -10, 100])
    np.testing.assert_array_equal(clamp(LIMITS, [500, -500, 500], None), [100, -500, 100])
    for wrong in ([0, math.nan, 0], [0, 0], "no"):
        with pytest.raises(UnsafeActionError, match="3 finite numbers"):
            clamp(LIMITS, wrong, HOME)


@pytest.mark.parametrize(
    ("ranges", "steps", "age", "message"),
    [
        ({"pan": (0, 1)}, 1.0, 1.0, "no 'pan' in this robot's actions. Did you mean 'pan.pos'"),
        ({}, {"lift": 1.0}, 1.0, "no 'lift'"),
        ({"pan.pos": (1, 1)}, 1.0, 1.0, "lower one must be below"),
        ({"pan.pos": (math.nan, 1)}, 1.0, 1.0, "without NaN"),
        ({}, 0.0, 1.0, "must be above 0"),
        ({}, 1.0, 0.0, "must be above 0"),
    ],
)
def test_limits_that_can_not_work_are_errors(ranges: Any, steps: Any, age: float, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_limits(NAMES, ranges, steps, age)


numbers = (
    st.floats(allow_subnormal=False) | st.floats(-150, 150) | st.sampled_from([0.0, 100.0, -100.0, 3.4e38])
)
widths = st.floats(1e-6, 1e6) | st.just(math.inf)


@st.composite
def cases(draw: Any) -> tuple[JointLimits, np.ndarray, np.ndarray, float]:
    size, ticks = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    low = np.array([draw(st.just(-math.inf) | st.floats(-1e3, 1e3)) for _ in range(size)], np.float32)
    above = np.array([draw(st.just(math.inf) | st.floats(1e-2, 1e6)) for _ in range(size)], np.float32)
    high = np.where(np.isfinite(low), low, 0).astype(np.float32) + above
    step = np.array([draw(widths) for _ in range(size)], np.float32)
    limits = JointLimits(tuple(f"j{at}" for at in range(size)), low, high, step)
    chunk = np.array([[draw(numbers) for _ in range(size)] for _ in range(ticks)])
    position = np.array([draw(numbers) for _ in range(size)])
    return limits, chunk, position, draw(st.floats(0, 4) | st.sampled_from([math.nan, math.inf]))


@settings(max_examples=300)
@given(cases())
def test_whatever_comes_only_safe_actions_pass(
    case: tuple[JointLimits, np.ndarray, np.ndarray, float],
) -> None:
    check_one(*case)


def test_a_storm_of_actions() -> None:
    from tests.robots.gate import storm

    assert min(storm(5_000, seed=0).values()) > 100


@pytest.mark.slow
def test_a_million_actions() -> None:
    from tests.robots.gate import storm

    assert min(storm(1_000_000, seed=1).values()) > 10_000

"""The order of a run's samples: whole epochs, shares that are kept, and any place can be started from."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from smolact.errors import ConfigError
from smolact.training.stream import BLOCK, InfiniteSampler, Mixture, ShuffledEpochs


def test_the_stream_of_samples_is_whole_epochs_and_can_start_anywhere() -> None:
    def take(count: int, start: int = 0, seed: int = 1) -> list[int]:
        return [
            place.frame
            for place in itertools.islice(InfiniteSampler(ShuffledEpochs(range(5), seed), start), count)
        ]

    stream = take(15)
    for epoch in range(3):
        assert sorted(stream[5 * epoch : 5 * epoch + 5]) == [0, 1, 2, 3, 4]
    assert stream[:5] != stream[5:10]
    assert take(15, seed=2) != stream
    for start in range(12):
        assert take(15 - start, start) == stream[start:]


def mixture(seed: int = 0) -> Mixture:
    orders = [ShuffledEpochs(range(10), seed), ShuffledEpochs(np.arange(10, 17), seed, "second")]
    return Mixture(orders, [3.0, 1.0], seed)


def test_a_mixture_keeps_its_shares_in_every_block_and_each_datasets_epochs() -> None:
    frames = [mixture().frame(position) for position in range(3 * BLOCK)]
    for block in range(3):
        part = frames[block * BLOCK : (block + 1) * BLOCK]
        assert abs(sum(frame >= 10 for frame in part) - BLOCK / 4) <= 1
        assert 0 < sum(frame >= 10 for frame in part[: BLOCK // 4]) < BLOCK // 4  # spread, not in a row
    second = [frame for frame in frames if frame >= 10]
    for epoch in range(20):
        assert sorted(second[7 * epoch : 7 * epoch + 7]) == list(range(10, 17))


def test_a_mixture_is_the_same_from_wherever_it_is_read() -> None:
    straight = [mixture().frame(position) for position in range(2 * BLOCK)]
    jumping = mixture()
    for position in (2 * BLOCK - 1, 0, BLOCK, BLOCK - 1, 5, BLOCK + 7):
        assert jumping.frame(position) == straight[position]
    assert [mixture(seed=1).frame(position) for position in range(50)] != straight[:50]


@hypothesis_settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(min_value=0.05, max_value=1), min_size=1, max_size=6),
    st.integers(0, 10**9),
    st.integers(0, 9),
)
def test_a_turn_counts_the_turns_before_it(weights: list[float], block: int, seed: int) -> None:
    mixed = Mixture([ShuffledEpochs(range(3), seed) for _ in weights], weights, seed)
    before = mixed._counts(block)
    assert before.sum() == block * BLOCK
    turns = [mixed.turn(block * BLOCK + slot) for slot in range(BLOCK)]
    counts = before.copy()
    for turn, number in turns:
        assert number == counts[turn]
        counts[turn] += 1
    assert (counts == mixed._counts(block + 1)).all()


@pytest.mark.parametrize("weights", [[1.0, 0.0], [1.0, -1.0], [float("nan"), 1.0], [1.0, 1e-4]])
def test_weights_that_can_not_be_kept_are_refused(weights: list[float]) -> None:
    with pytest.raises(ConfigError, match=r"above 0|too small"):
        Mixture([ShuffledEpochs(range(3), 0), ShuffledEpochs(range(3), 0)], weights, 0)

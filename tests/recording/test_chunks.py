"""Which action is due when chunks overlap and come late, against the slow way: every chunk for every tick."""

from __future__ import annotations

import math

import numpy as np
import pytest

from smolact.errors import ConfigError, FeatureError
from smolact.runtime.chunks import MERGES, ChunkQueue, ensemble, find_merge


def chunk(start: float, length: int = 6) -> np.ndarray:
    return (start + np.arange(length, dtype=np.float32))[:, None].repeat(2, 1)


def test_a_chunk_that_comes_late_goes_on_where_the_robot_is() -> None:
    queue = ChunkQueue()
    assert queue.take() is None and queue.tick == 0  # to hold is no tick
    assert queue.put(chunk(0), 0) == 0
    for expected in (0, 1, 2):
        assert queue.take() == pytest.approx([expected] * 2)
    assert queue.put(chunk(100), 1) == 2  # asked before tick 1, and 1 and 2 have gone by
    assert queue.take() == pytest.approx([102, 102])
    assert len(queue) == 3 and queue.remaining()[:, 0].tolist() == [103, 104, 105]


def test_an_answer_to_an_older_question_is_dropped() -> None:
    queue = ChunkQueue()
    queue.put(chunk(0), 0)
    queue.take()
    queue.put(chunk(50), 1)
    assert queue.put(chunk(900), 0) == 6
    assert queue.take() == pytest.approx([50, 50])


@pytest.mark.parametrize("name", MERGES)
def test_every_way_equals_the_slow_one(name: str) -> None:
    """The slow way keeps each chunk whole, and works out what is due at a tick from all that have one for it."""
    chance = np.random.default_rng(3)
    queue, told, taken = ChunkQueue(MERGES[name]), [], []
    asked: list[int] = []
    for _ in range(60):
        if not asked and chance.random() < 0.6:
            asked.append(queue.tick)
        if asked and chance.random() < 0.5:
            tick = asked.pop()
            one = chance.standard_normal((8, 2)).astype(np.float32)
            queue.put(one, tick)
            told.append((queue.tick, tick, one))
        action = queue.take()
        if action is not None:
            taken.append((len(told), action))
    assert len(taken) > 20
    for tick, (known, action) in enumerate(taken):
        several = [
            (one[tick - first]) for came, first, one in told[:known] if came <= tick and 0 <= tick - first < 8
        ]
        # A newer chunk that is shorter ends what was due: only those count that reach as far as the newest.
        newest = max(first for came, first, _ in told[:known] if came <= tick)
        assert tick - newest < 8
        assert action == pytest.approx(slow(name, several), rel=1e-4, abs=1e-5)


def slow(name: str, actions: list[np.ndarray]) -> np.ndarray:
    if name == "ensemble":
        weights = [math.exp(-0.01 * place) for place in range(len(actions))]
        return sum(w * a for w, a in zip(weights, actions, strict=True)) / sum(weights)  # type: ignore[no-any-return]
    share = {"latest": 1.0, "weighted_average": 0.7, "average": 0.5, "conservative": 0.3}[name]
    due = actions[0]
    for new in actions[1:]:
        due = (1 - share) * due + share * new
    return due


def test_a_decay_favours_the_oldest() -> None:
    queue = ChunkQueue(ensemble(10.0))
    queue.put(chunk(0), 0)
    queue.put(chunk(100), 0)
    assert queue.take() == pytest.approx([0, 0], abs=0.01)


def test_what_is_no_chunk_is_refused() -> None:
    queue = ChunkQueue()
    for wrong, tick in ((np.zeros(3, np.float32), 0), (chunk(0), 1), (chunk(0), -1)):
        with pytest.raises(FeatureError, match="Expected a chunk"):
            queue.put(wrong, tick)
    with pytest.raises(ConfigError, match="Did you mean 'latest'"):
        find_merge("lastest")

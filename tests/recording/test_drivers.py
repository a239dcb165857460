"""A policy drives a robot chunk by chunk, and each passes the gate whole or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from smolact.errors import FeatureError, UnsafeActionError
from smolact.robots.safety import Gate, make_limits
from smolact.runtime.controller import ChunkController
from smolact.runtime.inference import Inference, SyncInference
from smolact.runtime.policy import Chunk, Policy, Request
from smolact_client import Schema

HERE = {"observation.state": np.zeros(2, np.float32)}


class Counting(Policy):
    """Gives chunks of three steps that count on, and says how often it was asked."""

    schema = Schema("counting", {}, {"observation.state": 2}, action=2, chunk_size=3, n_action_steps=2)

    def __init__(self, last: float = 0.02) -> None:
        self.asked = self.resets = 0
        self.last = last

    def reset(self) -> None:
        self.resets += 1

    def predict(self, requests: Sequence[Request]) -> list[Chunk]:
        self.asked += 1
        assert [request.task for request in requests] == ["go"]
        return [np.array([[0.01, 0.01], [self.last, 0.02], [9.0, 9.0]], np.float32)]


def driver_of(policy: Counting, gate: Gate, clock: Any = None) -> ChunkController:
    more = {} if clock is None else {"clock": clock}
    driver = ChunkController(SyncInference(policy), Inference(executed=2), gate, **more)
    driver.begin("go")
    return driver


def gate() -> Gate:
    found = Gate(make_limits(("a", "b"), {"a": (-1.0, 1.0), "b": (-1.0, 1.0)}, 0.1, max_age=0.5))
    found.position = np.zeros(2, np.float32)
    return found


def test_a_chunk_is_predicted_when_the_last_one_is_used_up() -> None:
    policy = Counting()
    driver = driver_of(policy, gate())
    found = [driver.get_action(HERE)[0] for _ in range(5)]
    assert found == pytest.approx([0.01, 0.02, 0.01, 0.02, 0.01])
    assert policy.asked == 3
    driver.begin("go")
    driver.get_action(HERE)
    assert (policy.asked, policy.resets) == (4, 2)


def test_a_chunk_with_one_bad_step_is_refused_before_its_first() -> None:
    with pytest.raises(UnsafeActionError, match="Tick 1 of 2"):
        driver_of(Counting(last=0.5), gate()).get_action(HERE)


def test_a_chunk_that_took_too_long_is_refused() -> None:
    times = iter([0.0, 0.7])
    with pytest.raises(UnsafeActionError, match="old"):
        driver_of(Counting(), gate(), clock=lambda: next(times)).get_action(HERE)


def test_a_chunk_that_is_not_finite_is_refused() -> None:
    with pytest.raises(FeatureError, match="not finite"):
        driver_of(Counting(last=float("nan")), gate()).get_action(HERE)

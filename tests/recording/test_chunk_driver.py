"""A policy that answers late: the robot holds or goes on, never jumps back, and never carries out what is stale."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from smolact.errors import ConfigError, FeatureError, RobotError, UnsafeActionError
from smolact.robots.safety import Gate, make_limits
from smolact.runtime.chunks import Delays
from smolact.runtime.controller import ChunkController, Counts
from smolact.runtime.inference import Inference, RealTime, ThreadedInference
from smolact.runtime.policy import Chunk, Request
from smolact_client import Leftover

LENGTH = 8


def open_gate() -> Gate:
    """One that lets every finite number pass, at any age."""
    return Gate(make_limits(("a", "b"), {}, {}, float("inf")))


class Late:
    """Answers after some ticks; each action tells the tick that it is for, and the question that it answers."""

    def __init__(self, ticks: int) -> None:
        self.ticks, self.left, self.asked = ticks, 0, -1
        self.chunk: np.ndarray | None = None
        self.tasks: list[str] = []
        self.leftovers: list[Leftover | None] = []

    def ask(self, observation: dict[str, Any], task: str, leftover: Leftover | None = None) -> None:
        assert self.chunk is None, "one question at a time"
        self.asked += 1
        self.tasks.append(task)
        self.leftovers.append(leftover)
        first = int(observation["tick"][0])
        numbers = first + np.arange(LENGTH, dtype=np.float32)
        self.chunk = np.stack([numbers, np.full(LENGTH, self.asked, np.float32)], axis=1)
        self.left = self.ticks

    def answer(self) -> np.ndarray | None:
        if self.chunk is None or self.left > 0:
            return None
        found, self.chunk = self.chunk, None
        return found

    def reset(self) -> None:
        self.chunk = None

    def tick(self) -> None:
        self.left -= 1


def drive(asks: Late, inference: Inference, ticks: int = 40) -> tuple[list[np.ndarray], ChunkController]:
    driver = ChunkController(asks, inference, open_gate())
    driver.begin("go")
    moved: list[np.ndarray] = []
    done = 0
    for _ in range(ticks):
        action = driver.get_action({"tick": np.array([done])})
        if driver.counts.moved > done:
            assert action is not None
            moved.append(action)
            done = driver.counts.moved
        asks.tick()
    return moved, driver


@pytest.mark.parametrize("late", [0, 1, 3, 7, 20])
@pytest.mark.parametrize("refill", [0.0, 0.5, 1.0])
def test_every_action_is_for_the_tick_at_which_it_is_carried_out(late: int, refill: float) -> None:
    moved, driver = drive(Late(late), Inference(refill))
    assert [int(action[0]) for action in moved] == list(range(len(moved)))
    questions = [int(action[1]) for action in moved]
    assert questions == sorted(questions)  # never back to an older answer
    assert driver.counts.moved + driver.counts.held == 40


def test_who_asks_early_never_holds_but_at_the_beginning() -> None:
    late = 3
    assert drive(Late(late), Inference(0.0))[1].counts.held > 2 * late
    assert drive(Late(late), Inference(0.5))[1].counts.held == late
    assert drive(Late(0), Inference(0.0))[1].counts.held == 0


def test_sync_carries_out_as_many_as_it_is_told() -> None:
    moved, driver = drive(Late(0), Inference(executed=4))
    assert [int(action[1]) for action in moved[:9]] == [0, 0, 0, 0, 1, 1, 1, 1, 2]
    assert driver.counts.late == 0


def test_while_it_holds_it_repeats_the_last_action_and_gives_up_at_the_deadline() -> None:
    asks, now = Late(10**6), [0.0]
    driver = ChunkController(asks, Inference(deadline=2.0), open_gate(), clock=lambda: now[0])
    driver.begin("go")
    see = {"tick": np.array([0])}
    assert driver.get_action(see) is None
    asks.left = 0
    for _ in range(LENGTH):
        last = driver.get_action(see)
    asks.ticks = 10**6
    for now[0] in (1.0, 2.0, 2.9):
        assert driver.get_action(see) is last
    now[0] = 3.1
    with pytest.raises(RobotError, match=r"no actions for 2\.1 s"):
        driver.get_action(see)


def test_a_hold_is_told_when_it_happens_and_a_slow_policy_not_again(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    asks, now = Late(10**6), [0.0]
    driver = ChunkController(asks, Inference(deadline=60.0), open_gate(), clock=lambda: now[0])
    driver.begin("go")

    def hold(seconds: float) -> str:
        """Hold for so long, be answered, and carry that out; what was said in between."""
        caplog.clear()
        for _ in range(round(seconds * 10)):
            driver.get_action({"tick": np.array([driver.counts.moved])})
            now[0] += 0.1
        said = caplog.text
        asks.left = 0
        for _ in range(LENGTH):
            driver.get_action({"tick": np.array([driver.counts.moved])})
        return said

    assert hold(0.9) == ""
    assert hold(3.0).count("no actions for 1.0 s, and the robot holds") == 1
    assert "answers again, after 3.0 s" in caplog.text
    assert hold(4.0) == ""  # it is that slow
    assert "--inference.deadline" in hold(6.0)


def test_what_was_asked_in_the_last_episode_is_of_no_interest() -> None:
    asks = Late(0)
    driver = ChunkController(asks, Inference(1.0), open_gate())
    driver.begin("one")
    driver.get_action({"tick": np.array([0])})
    driver.task = "another"
    driver.get_action({"tick": np.array([1])})
    driver.begin("two")
    action = driver.get_action({"tick": np.array([0])})
    assert action is not None and action[0] == 0
    assert asks.tasks == ["one", "another", "two"] and driver.counts.moved == 1


def test_the_gate_refuses_the_whole_chunk() -> None:
    gate = Gate(make_limits(("a", "b"), {"a": (0, 5)}, 100.0))
    driver = ChunkController(Late(0), Inference(), gate)
    driver.begin("go")
    with pytest.raises(UnsafeActionError, match="'a' to 6"):
        driver.get_action({"tick": np.array([0])})
    assert driver.counts.moved == 0


@pytest.mark.parametrize(
    "wrong", [np.full((8, 2), np.nan, np.float32), np.zeros((0, 2), np.float32), np.zeros(3)]
)
def test_what_is_no_chunk_moves_nothing(wrong: np.ndarray) -> None:
    class Wrong(Late):
        def answer(self) -> np.ndarray:
            return wrong

    driver = ChunkController(Wrong(0), Inference(), open_gate())
    driver.begin("go")
    with pytest.raises(FeatureError, match="no chunk"):
        driver.get_action({"tick": np.array([0])})


class Slow:
    """A policy whose answer waits for a word."""

    def __init__(self) -> None:
        self.word, self.resets = threading.Event(), 0
        self.leftovers: list[Leftover | None] = []

    def predict(self, requests: Sequence[Request]) -> list[Chunk]:
        ((task, leftover),) = ((request.task, request.leftover) for request in requests)
        assert self.word.wait(10)
        self.leftovers.append(leftover)
        if task == "fail":
            raise FeatureError("there is no such camera")
        return [np.ones((4, 2), np.float32)]

    def reset(self) -> None:
        self.resets += 1

    def close(self) -> None: ...


def test_a_thread_asks_and_its_errors_arrive() -> None:
    policy = Slow()
    asks = ThreadedInference(policy)
    try:
        asks.ask({}, "go")
        assert asks.answer() is None
        policy.word.set()
        asks._future.result(10)  # type: ignore[union-attr]
        assert (asks.answer() == 1).all() and asks.answer() is None  # type: ignore[union-attr]
        asks.ask({}, "fail")
        asks._future.exception(10)  # type: ignore[union-attr]
        with pytest.raises(FeatureError, match="no such camera"):
            asks.answer()
        asks.ask({}, "go", Leftover(np.zeros((1, 2), np.float32), 1))
        asks.reset()
        assert asks.answer() is None and policy.resets == 1
    finally:
        asks.close()


# Real-time chunking.


def test_without_real_time_nothing_is_left_over() -> None:
    late = Late(2)
    drive(late, Inference(0.5))
    assert len(late.leftovers) > 5 and set(late.leftovers) == {None}


def test_what_is_left_is_told_and_the_delay_is_counted_after_the_first_one() -> None:
    late = Late(3)
    _, driver = drive(late, Inference(0.75, real_time=RealTime("linear", 4.0, False)), 60)
    assert driver.counts.held == 3  # at the beginning
    first, second, third, *rest = late.leftovers
    assert first is None
    assert second is not None and third is not None
    # Asked when 6 of 8 were left; nothing is known of the delay, and neither after an answer that may have warmed up: all is frozen.
    assert (second.delay, third.delay) == (len(second.actions), len(third.actions)) == (6, 5)
    assert len(rest) > 5 and all(one is not None and one.delay == 3 for one in rest)
    assert (second.schedule, second.max_weight, second.jacobian) == ("linear", 4.0, False)
    # What is left begins with the action of the very tick that the question is for, and is in the robot's units.
    assert second.actions[:, 0].tolist() == [2, 3, 4, 5, 6, 7]
    assert second.actions.dtype == np.float32 and set(second.actions[:, 1]) == {0}


def test_the_longest_of_the_last_delays_is_expected_and_no_more_than_is_left() -> None:
    delays = Delays(kept=3, warm_ups=1)
    assert delays.expected(7) == 7
    delays.add(50)
    assert delays.expected(7) == 7
    for count, expected in ((2, 2), (4, 4), (1, 4), (1, 4), (1, 1)):
        delays.add(count)
        assert delays.expected(7) == expected
    assert delays.expected(0) == 0


def test_another_instruction_is_held_to_what_will_be_carried_out_and_no_further() -> None:
    late = Late(0)
    driver = ChunkController(late, Inference(0.75, real_time=RealTime()), open_gate())
    driver.begin("one")
    for tick in range(20):
        driver.task = "one" if tick < 8 else "two"
        driver.get_action({"tick": np.array([tick])})
        assert driver.current_instruction == late.tasks[-1]
    schedules = [one.schedule for one in late.leftovers if one is not None]
    assert late.tasks == ["one"] * 4 + ["two"] * 6
    assert schedules == ["exp"] * 3 + ["zeros"] + ["exp"] * 5


def test_an_episode_begins_with_nothing_left_and_what_is_known_of_delays() -> None:
    late = Late(1)
    driver = ChunkController(late, Inference(0.5, real_time=RealTime()), open_gate())
    for episode in range(2):
        driver.begin("go")
        del late.leftovers[:]
        done = 0
        for _ in range(30):
            driver.get_action({"tick": np.array([done])})
            done = driver.counts.moved
            late.tick()
        assert late.leftovers[0] is None and late.leftovers[1] is not None
        assert late.leftovers[1].delay == (4 if episode == 0 else 1)


@pytest.mark.parametrize("wrong", [{"schedule": "exponential"}, {"max_weight": 0}, {"max_weight": 2000.0}])
def test_settings_of_real_time_chunking_out_of_range_are_told(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        RealTime(**wrong)


@pytest.mark.parametrize("wrong", [{"refill": 1.5}, {"executed": 0}, {"deadline": 0}, {"merge": "best"}])
def test_settings_out_of_range_are_told(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Inference(**wrong)


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        (Counts(9, 1, 3, 3), "held for 1 tick, 3 chunks, 3 actions came too late"),
        (Counts(9, 2, 1, 1), "held for 2 ticks, 1 chunk, 1 action came too late"),
        (Counts(9, 0, 0, 0), "0 chunks"),
    ],
)
def test_an_episodes_counts_are_a_sentence(counts: Counts, said: str) -> None:
    assert str(counts) == said

"""A server that is killed, stalls or is late at some moment, on a simulated clock: what the robot is sent meanwhile.

    python -m tests.recording.watchdog [CASES=10000] [SEED=0]

The real loop, driver, queue and gate run; only time, robot and server are made up. Every action tells the tick that it is for
and the question that it answers, so a stale one would be seen.
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from smolact.errors import RobotError, ServerError, UnsafeActionError
from smolact.robots.safety import Gate, make_limits
from smolact.runtime.controller import ChunkController
from smolact.runtime.inference import Inference
from smolact.runtime.rollout import roll_out
from smolact_client import Leftover

FPS, LENGTH = 30.0, 15
MAX_AGE, DEADLINE, SOON = 0.6, 1.0, 0.1


class Clock:
    """Time that goes by when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += max(0.0, seconds)


class Server:
    """Answers after a while, until `fate` befalls it at the moment `when`."""

    def __init__(self, clock: Clock, draw: random.Random, fate: str, when: float) -> None:
        self._clock, self._draw, self._fate, self._when = clock, draw, fate, when
        self._late = draw.uniform(0.0, 3.0)
        self._begin = self._end = 0.0
        self._chunk: np.ndarray | None = None
        self.asked = -1
        self.took: dict[int, float] = {}

    def ask(self, observation: dict[str, Any], task: str, leftover: Leftover | None = None) -> None:
        assert self._chunk is None, "one question at a time"
        self.asked += 1
        ticks = int(observation["tick"][0]) + np.arange(LENGTH, dtype=np.float32)
        self._chunk = np.stack([ticks, np.full(LENGTH, self.asked, np.float32)], axis=1)
        self._begin = self._clock()
        self._end = self._begin + self._draw.uniform(0.0, 0.2)

    def answer(self) -> np.ndarray | None:
        now = self._clock()
        if self._chunk is None:
            return None
        if self._fate and self._end > self._when:  # it had not answered by then
            if self._fate == "killed" and now > self._when + self._late:
                raise ServerError("The connection is lost, and there is no new one yet.")
            if self._fate != "delayed" or now < self._end + self._late:
                return None
        elif now < self._end:
            return None
        found, self._chunk = self._chunk, None
        self.took[self.asked] = now - self._begin
        return found

    def reset(self) -> None:
        self._chunk = None


@dataclass
class Robot:
    """Notes when it was sent what, and whether that was a new action."""

    clock: Clock
    gate: Gate
    driver: ChunkController | None = None
    name: str = "noted"
    sent: list[tuple[float, np.ndarray, int]] = field(default_factory=list)

    def get_observation(self) -> dict[str, Any]:
        assert self.driver is not None
        return {"tick": np.array([self.driver.counts.moved])}

    def send_action(self, action: np.ndarray) -> np.ndarray:
        assert self.driver is not None
        self.sent.append((self.clock(), action, self.driver.counts.moved))
        return action


def run_case(seed: int) -> tuple[str, float]:
    """How a case ended, and by how many seconds the robot was told to hold, or given up, later than it should.

    Raises:
        AssertionError: a stale action was sent, or one for another tick; or it was later than `SOON`.
    """
    draw = random.Random(seed)
    clock = Clock()
    fate = draw.choice(("killed", "stalled", "delayed", "delayed"))
    server = Server(clock, draw, fate, clock() + draw.uniform(0.0, 1.5))
    inference = Inference(draw.choice((0.0, 0.3, 0.7, 1.0)), "latest", deadline=DEADLINE)
    gate = Gate(make_limits(("tick", "question"), {}, float("inf"), MAX_AGE))
    robot = Robot(clock, gate)
    robot.driver = driver = ChunkController(server, inference, gate, clock)  # type: ignore[arg-type]
    ended = "went on"
    try:
        roll_out(robot, driver, fps=FPS, duration=5.0, task="go", clock=clock, sleep=clock.sleep)  # type: ignore[arg-type]
    except UnsafeActionError:
        ended = "refused"
    except RobotError:
        ended = "given up"
    except ServerError:
        ended = "lost"
    return f"{fate}, {ended}", judge(robot, server, clock() if ended == "given up" else None)


def judge(robot: Robot, server: Server, given_up: float | None) -> float:
    """By how many seconds anything was later than it should."""
    latest, moved, held_since = 0.0, 0, None
    last: np.ndarray | None = None
    before = robot.sent[0][0] - 1 / FPS if robot.sent else 0.0
    for at, action, count in robot.sent:
        latest = max(latest, at - before - 1 / FPS)  # an action, or the same again, is due every tick
        if count > moved:
            tick, question = (int(number) for number in action)
            assert count == moved + 1 and tick == moved, "an action for another tick"
            assert server.took[question] <= MAX_AGE, "an action of a stale chunk"
            moved, held_since = count, None
        else:
            assert last is not None and np.array_equal(action, last), "it does not hold"
            held_since = at if held_since is None else held_since
        last, before = action, at
    if given_up is not None and held_since is not None:
        latest = max(latest, given_up - held_since - DEADLINE)
    assert latest <= SOON, f"{latest:.3f} s too late"
    return latest


def storm(cases: int, seed: int) -> tuple[Counter[str], float]:
    """How many cases ended how, and the latest of all."""
    ends: Counter[str] = Counter()
    latest = 0.0
    for number in range(seed, seed + cases):
        end, late = run_case(number)
        ends[end] += 1
        latest = max(latest, late)
    return ends, latest


if __name__ == "__main__":
    arguments = [int(word) for word in sys.argv[1:]]
    found, worst = storm(*(arguments + [10_000, 0][len(arguments) :]))
    sys.stdout.write(
        f"{found.total()} servers killed, stalled or delayed: {dict(found.most_common())}; a hold or the end at most "
        f"{1000 * worst:.0f} ms after it was due, 0 stale actions\n"
    )

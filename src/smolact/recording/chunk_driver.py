"""A policy drives while it thinks: the next chunk is made beside the control loop, which never waits.

    get_action:  answer there? ─► gate ─► queue      few left? ─► ask, with this observation
                 queue empty?  ─► hold

`sync` asks when the last action was taken, and the robot holds meanwhile; `async` asks while enough are left; real-time
chunking also tells what is left, and the new chunk goes on from there.
"""

# T actions of a chunk, A numbers of an action.

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from smolact.errors import ConfigError, FeatureError, RobotError, did_you_mean
from smolact.recording.chunks import ChunkQueue, Delays, find_merge
from smolact.robots.base import Observation
from smolact.robots.safety import Gate
from smolact_client.leftover import HIGHEST_WEIGHT, MAX_WEIGHT, SCHEDULES, Leftover

logger = logging.getLogger(__name__)

Actions = NDArray[np.float32]

QUIET_S = 1.0
"""A robot that holds for longer is told of."""


class InferenceBackend(Protocol):
    """Someone who is asked for a chunk and answers later; one question at a time."""

    def ask(self, observation: Observation, task: str, leftover: Leftover | None = None) -> None:
        """Begin to answer; what the answer is to go on from, if it is."""
        ...

    def answer(self) -> Actions | None:
        """The chunk (T, A) in the robot's units; None while it is being made."""
        ...

    def reset(self) -> None:
        """The question at hand is of no interest any more: an episode begins."""
        ...


class Predicts(Protocol):
    """A policy with its processors, here or on a server (`smolact_client.ChunkPolicy`)."""

    def predict_action_chunk(
        self, observation: Mapping[str, Any], task: str | None, *, leftover: Leftover | None = None
    ) -> Actions:
        """The next actions (T, A); they go on from `leftover`."""
        ...

    def reset(self) -> None:
        """An episode begins."""
        ...

    def close(self) -> None:
        """Let go of it; a question that waits for a server fails at once."""
        ...


class ThreadedInference:
    """Asks a policy in a thread.

    Args:
        policy: who is asked.
        drop: makes a question fail at once that waits for a server, from any thread. A policy that computes here goes on.
    """

    def __init__(self, policy: Predicts, drop: Callable[[], None] = lambda: None) -> None:
        self._policy, self._drop = policy, drop
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="smolact policy")
        self._future: Future[Actions] | None = None

    def ask(self, observation: Observation, task: str, leftover: Leftover | None = None) -> None:
        """See `InferenceBackend`."""
        self._future = self._thread.submit(
            self._policy.predict_action_chunk, observation, task, leftover=leftover
        )

    def answer(self) -> Actions | None:
        """See `InferenceBackend`. Raises what the policy raised."""
        if self._future is None or not self._future.done():
            return None
        future, self._future = self._future, None
        return future.result()

    def reset(self) -> None:
        """See `InferenceBackend`."""
        if self._future is not None:
            self._future.cancel()
            self._future = None
        self._drop()
        self._thread.submit(self._policy.reset).result()

    def close(self) -> None:
        """Let go of policy and thread; what is being computed here is waited for, an answer from elsewhere is not."""
        self._policy.close()
        self._thread.shutdown(wait=True, cancel_futures=True)


class SyncInference:
    """Asks a policy in place, for a simulation whose clock stands still meanwhile."""

    def __init__(self, policy: Predicts) -> None:
        self._policy = policy
        self._chunk: Actions | None = None

    def ask(self, observation: Observation, task: str, leftover: Leftover | None = None) -> None:
        """See `InferenceBackend`. Raises what the policy raises."""
        self._chunk = self._policy.predict_action_chunk(observation, task, leftover=leftover)

    def answer(self) -> Actions | None:
        """See `InferenceBackend`."""
        found, self._chunk = self._chunk, None
        return found

    def reset(self) -> None:
        """See `InferenceBackend`."""
        self._chunk = None
        self._policy.reset()


@dataclass(frozen=True)
class RealTime:
    """How strongly a new chunk is held to what is left of the old one; see `smolact_client.Leftover`.

    Raises:
        ConfigError: a number is out of its range, or there is no such schedule.
    """

    schedule: str = "exp"
    max_weight: float = MAX_WEIGHT
    jacobian: bool = True

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.schedule not in SCHEDULES:
            raise ConfigError(
                f"schedule={self.schedule}: there are {', '.join(SCHEDULES)}.{did_you_mean(self.schedule, SCHEDULES)}"
            )
        if not 0 < self.max_weight <= HIGHEST_WEIGHT:
            raise ConfigError(f"max_guidance_weight={self.max_weight}: above 0, up to {HIGHEST_WEIGHT:g}.")


@dataclass(frozen=True)
class Inference:
    """How a policy is asked.

    Attributes:
        refill: ask when this share of a chunk, or less, is left: 0 is `sync`, 1 asks as often as it can.
        merge: what becomes of actions that an older chunk has for the same tick; see `chunks.MERGES`.
        executed: so many of a chunk's actions are taken at most; None takes all.
        deadline: seconds that the robot holds for want of an answer before the episode is given up.
        real_time: the new chunk goes on from what is left of the old one; None: it knows nothing of it.

    Raises:
        ConfigError: a number is out of its range.
    """

    refill: float = 0.0
    merge: str = "latest"
    executed: int | None = None
    deadline: float = 10.0
    real_time: RealTime | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        find_merge(self.merge)
        if not 0 <= self.refill <= 1:
            raise ConfigError(f"refill={self.refill}: it is a share of a chunk, from 0 to 1.")
        if self.executed is not None and self.executed < 1:
            raise ConfigError(f"executed={self.executed}: at least one action of a chunk is taken.")
        if not self.deadline > 0:
            raise ConfigError(f"deadline={self.deadline}: seconds above 0.")


@dataclass
class Counts:
    """What happened in an episode: ticks that moved and that held, chunks, and actions that came too late."""

    moved: int = 0
    held: int = 0
    chunks: int = 0
    late: int = 0

    def __str__(self) -> str:
        parts = [f"held for {_counted(self.held, 'tick')}"] * bool(self.held)
        parts.append(_counted(self.chunks, "chunk"))
        parts += [f"{_counted(self.late, 'action')} came too late"] * bool(self.late)
        return ", ".join(parts)


def _counted(number: int, noun: str) -> str:
    """`1 tick`, `2 ticks`."""
    return f"{number} {noun}" + "s" * (number != 1)


class _Asked(NamedTuple):
    """The question at hand: at which tick and when it was asked, for what, and whether with a leftover."""

    tick: int
    at: float
    task: str
    has_prefix: bool


class ChunkDriver:
    """Says what a robot does, by a policy's chunks; see `recording.recorder.Driver`.

    Args:
        asks: who is asked.
        inference: how.
        gate: the robot's, when it is connected. What is due passes whole, or the chunk is refused.
        clock: for ages and the deadline.

    Attributes:
        task: the instruction; another one counts from the next question on.
        obeyed: the instruction that the newest chunk here was asked for with.
        counts: what happened in this episode.
    """

    drives_resets = False

    def __init__(
        self,
        asks: InferenceBackend,
        inference: Inference,
        gate: Gate,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._asks, self._inference, self._gate, self._clock = asks, inference, gate, clock
        self._queue = ChunkQueue(find_merge(inference.merge))
        self._delays = Delays()
        self.task = self.current_instruction = ""
        self.counts = Counts()
        self._length = 0
        self._asked: _Asked | None = None
        self._last: Actions | None = None
        self._held_since: float | None = None
        self._patience = min(QUIET_S, inference.deadline / 2)
        self._is_told = False

    def begin(self, task: str) -> None:
        """An episode begins: nothing of the last one is executed, whatever comes."""
        self.task = self.current_instruction = task
        self._asks.reset()
        self._queue.clear()
        self._length, self._asked, self._last, self._held_since = 0, None, None, None
        self._is_told = False
        self.counts = Counts()

    def get_action(self, observation: Observation) -> Actions | None:
        """The action of this tick, (A,); the last one again while there is none; None before the first.

        Raises:
            FeatureError: what the policy gave is no chunk, or not finite.
            UnsafeActionError: the gate refuses; nothing of the chunk is executed.
            RobotError: there was no answer within the deadline.
        """
        self._take_answer()
        if self._asked is None and len(self._queue) <= self._inference.refill * self._length:
            leftover = self._leftover()
            self._asked = _Asked(self._queue.tick, self._clock(), self.task, leftover is not None)
            self._asks.ask(observation, self.task, leftover)
            self._take_answer()  # one who answers at once is not waited for
        action = self._queue.take()
        if action is not None:
            self.counts.moved += 1
            self._moves_again()
            self._last = action
            return action
        self.counts.held += 1
        now = self._clock()
        self._held_since = now if self._held_since is None else self._held_since
        if now - self._held_since > self._patience and not self._is_told:
            self._is_told = True
            logger.warning(
                "The policy has given no actions for %.1f s, and the robot holds where it is. After %g s of that this ends "
                "(--inference.deadline).",
                now - self._held_since,
                self._inference.deadline,
            )
        if now - self._held_since > self._inference.deadline:
            raise RobotError(
                f"The policy has given no actions for {now - self._held_since:.1f} s, and the robot holds where it is. See to the "
                "policy (its server, its device), or allow more time."
            )
        return self._last

    def _moves_again(self) -> None:
        """An action is there. A policy that was as slow before is not told of again."""
        if self._is_told and self._held_since is not None:
            held = self._clock() - self._held_since
            self._patience = max(self._patience, 1.5 * held)
            logger.info("The policy answers again, after %.1f s.", held)
        self._held_since, self._is_told = None, False

    def _leftover(self) -> Leftover | None:
        """What the answer to a question that is asked now is to go on from."""
        settings, remaining = self._inference.real_time, self._queue.remaining()
        if settings is None or not len(remaining):
            return None
        # What was planned for another instruction binds as far as it will be carried out, and no further.
        schedule = settings.schedule if self.task == self.current_instruction else "zeros"
        delay = self._delays.expected(len(remaining))
        return Leftover(remaining, delay, schedule, settings.max_weight, settings.jacobian)

    def _take_answer(self) -> None:
        if self._asked is None:
            return
        chunk = self._asks.answer()
        if chunk is None:
            return
        asked, self._asked = self._asked, None
        chunk = np.asarray(chunk, dtype=np.float32)[: self._inference.executed]
        if chunk.ndim != 2 or not len(chunk) or not np.isfinite(chunk).all():
            raise FeatureError(
                f"The policy gave {chunk.shape} that is no chunk (T, A) of finite numbers. Its weights or its statistics are "
                "damaged."
            )
        due = self._queue.merged(chunk, asked.tick)
        if len(due):
            self._gate.check_chunk(due, age=self._clock() - asked.at)
        if asked.has_prefix:
            self._delays.add(self._queue.tick - asked.tick)
        self._length, self.current_instruction = len(chunk), asked.task
        self.counts.chunks += 1
        self.counts.late += self._queue.put(chunk, asked.tick)

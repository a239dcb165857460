"""A policy as a source of actions: chunks are predicted asynchronously, and the control loop never waits.

    get_action:  new chunk?   ─► gate ─► queue      few actions left? ─► request, with this observation
                 queue empty?  ─► hold

`sync` requests a chunk when the last action was taken, and the robot holds meanwhile; `async` requests while enough are left; with
real-time chunking the new chunk continues the rest of the old one.
"""

# T actions of a chunk, A numbers of an action.

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from smolact.errors import RobotError
from smolact.robots.base import Observation
from smolact.robots.safety import Gate
from smolact.runtime.chunks import ChunkQueue, Delays, check_chunk, find_merge
from smolact.runtime.inference import Inference, InferenceBackend
from smolact_client.leftover import Leftover

logger = logging.getLogger(__name__)

Actions = NDArray[np.float32]

QUIET_S = 1.0
"""Seconds that a robot holds before a warning is logged."""


@dataclass
class Counts:
    """Counts of an episode: ticks that moved and that held, chunks, and actions that came too late."""

    moved: int = 0
    held: int = 0
    chunks: int = 0
    late: int = 0

    def __str__(self) -> str:
        parts = [f"held for {_plural(self.held, 'tick')}"] * bool(self.held)
        parts.append(_plural(self.chunks, "chunk"))
        parts += [f"{_plural(self.late, 'action')} came too late"] * bool(self.late)
        return ", ".join(parts)


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}" + "s" * (number != 1)


class _Pending(NamedTuple):
    """The pending request: its tick, time and instruction, and whether it has a leftover."""

    tick: int
    at: float
    task: str
    has_prefix: bool


class ChunkController:
    """The actions of a policy's chunks; an `ActionSource` of the control loop.

    Args:
        backend: predicts the chunks.
        inference: the settings of when to predict.
        gate: the gate of the connected robot; it checks all merged actions of a chunk, or refuses the chunk.
        clock: the time in seconds, for ages and the deadline.

    Attributes:
        task: the instruction; a change takes effect with the next request.
        current_instruction: the instruction of the newest chunk.
        counts: of this episode.
    """

    drives_resets = False

    def __init__(
        self,
        backend: InferenceBackend,
        inference: Inference,
        gate: Gate,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._backend, self._inference, self._gate, self._clock = backend, inference, gate, clock
        self._queue = ChunkQueue(find_merge(inference.merge))
        self._delays = Delays()
        self.task = self.current_instruction = ""
        self.counts = Counts()
        self._length = 0
        self._pending: _Pending | None = None
        self._last: Actions | None = None
        self._held_since: float | None = None
        self._patience = min(QUIET_S, inference.deadline / 2)
        self._has_warned = False

    def begin(self, task: str) -> None:
        """Begin an episode; chunks of the last one are not executed, even if one arrives later."""
        self.task = self.current_instruction = task
        self.counts = Counts()
        self.restart()

    def restart(self) -> None:
        """Discard all actions and the pending request, since the robot is not where they begin."""
        self._backend.reset()
        self._queue.clear()
        self._length, self._pending, self._last, self._held_since = 0, None, None, None
        self._has_warned = False

    def drop(self) -> None:
        """Nothing is connected: the policy is no part of the robot."""

    def reconnect(self) -> None:
        """Begin with a new chunk: the last one was computed before the robot's connection was lost."""
        self.restart()

    def get_action(self, observation: Observation) -> Actions | None:
        """Return the action of this tick, (A,); the last action while the queue is empty; None before the first.

        Raises:
            FeatureError: the policy's output is no chunk, or not finite.
            UnsafeActionError: the gate refuses the chunk; none of its actions is executed.
            RobotError: no chunk came within the deadline.
        """
        self._take_chunk()
        if self._pending is None and len(self._queue) <= self._inference.refill * self._length:
            leftover = self._leftover()
            self._pending = _Pending(self._queue.tick, self._clock(), self.task, leftover is not None)
            self._backend.ask(observation, self.task, leftover)
            self._take_chunk()  # a synchronous backend has the chunk already
        action = self._queue.take()
        if action is None:
            return self._hold()
        self.counts.moved += 1
        if self._has_warned and self._held_since is not None:
            held = self._clock() - self._held_since
            self._patience = max(self._patience, 1.5 * held)  # one warning for a policy that is always slow
            logger.info("The policy answers again, after %.1f s.", held)
        self._held_since, self._has_warned = None, False
        self._last = action
        return action

    def _hold(self) -> Actions | None:
        self.counts.held += 1
        now = self._clock()
        self._held_since = now if self._held_since is None else self._held_since
        held = now - self._held_since
        if held > self._patience and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "The policy has given no actions for %.1f s, and the robot holds where it is. After %g s of that this ends "
                "(--inference.deadline).",
                held,
                self._inference.deadline,
            )
        if held > self._inference.deadline:
            raise RobotError(
                f"The policy has given no actions for {held:.1f} s, and the robot holds where it is. See to the "
                "policy (its server, its device), or allow more time."
            )
        return self._last

    def _leftover(self) -> Leftover | None:
        """Return the remaining actions, for a new request."""
        settings, remaining = self._inference.real_time, self._queue.remaining()
        if settings is None or not len(remaining):
            return None
        # Actions of another instruction constrain the new chunk only as far as they will be executed.
        schedule = settings.schedule if self.task == self.current_instruction else "zeros"
        delay = self._delays.expected(len(remaining))
        return Leftover(remaining, delay, schedule, settings.max_weight, settings.jacobian)

    def _take_chunk(self) -> None:
        if self._pending is None:
            return
        chunk = self._backend.answer()
        if chunk is None:
            return
        pending, self._pending = self._pending, None
        chunk = check_chunk(chunk)[: self._inference.executed]
        age = self._clock() - pending.at
        late = self._queue.put(chunk, pending.tick, lambda due: self._gate.check_chunk(due, age=age))
        if pending.has_prefix:
            self._delays.add(self._queue.tick - pending.tick)
        self._length, self.current_instruction = len(chunk), pending.task
        self.counts.chunks += 1
        self.counts.late += late

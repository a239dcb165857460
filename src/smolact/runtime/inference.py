"""Inference backends, which predict chunks in a thread or in the control loop, and their settings."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Protocol

from smolact.errors import ConfigError, did_you_mean
from smolact.robots.base import Observation
from smolact.runtime.chunks import checked_chunks, find_merge
from smolact.runtime.policy import Chunk, Policy, Request
from smolact_client.leftover import HIGHEST_WEIGHT, MAX_WEIGHT, SCHEDULES, Leftover


class InferenceBackend(Protocol):
    """Predicts chunks, one request at a time."""

    def ask(self, observation: Observation, task: str, leftover: Leftover | None = None) -> None:
        """Start a prediction; the chunk continues `leftover`."""
        ...

    def answer(self) -> Chunk | None:
        """Return the chunk (T, A) in the robot's units; None while it is being computed. Raises the errors of `Policy.predict`."""
        ...

    def reset(self) -> None:
        """Begin an episode, and drop the pending request."""
        ...


class ThreadedInference:
    """Predicts in a worker thread.

    Args:
        policy: the policy.
        drop: makes a request that waits for a server fail at once, from any thread. A local prediction runs to its end.
    """

    def __init__(self, policy: Policy, drop: Callable[[], None] = lambda: None) -> None:
        self._policy, self._drop = policy, drop
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="smolact policy")
        self._future: Future[list[Chunk]] | None = None

    def ask(self, observation: Observation, task: str, leftover: Leftover | None = None) -> None:
        """See `InferenceBackend`."""
        self._future = self._thread.submit(
            self._policy.predict, [Request(observation, task, leftover=leftover)]
        )

    def answer(self) -> Chunk | None:
        """See `InferenceBackend`."""
        if self._future is None or not self._future.done():
            return None
        future, self._future = self._future, None
        return checked_chunks(future.result(), 1)[0]

    def reset(self) -> None:
        """See `InferenceBackend`."""
        if self._future is not None:
            self._future.cancel()
            self._future = None
        resetting = self._thread.submit(self._policy.reset)
        while True:
            self._drop()  # repeatedly: the request may reach its server late
            if wait([resetting], timeout=0.1).done:
                return resetting.result()

    def close(self) -> None:
        """Close the policy and the thread; a local prediction is waited for, a server is not."""
        self._policy.close()
        self._thread.shutdown(wait=True, cancel_futures=True)


class SyncInference:
    """Predicts in the control loop, for a simulation, whose clock is stopped meanwhile."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._chunk: Chunk | None = None

    def ask(self, observation: Observation, task: str, leftover: Leftover | None = None) -> None:
        """See `InferenceBackend`. Raises the errors of `Policy.predict`."""
        answer = self._policy.predict([Request(observation, task, leftover=leftover)])
        (self._chunk,) = checked_chunks(answer, 1)

    def answer(self) -> Chunk | None:
        """See `InferenceBackend`."""
        chunk, self._chunk = self._chunk, None
        return chunk

    def reset(self) -> None:
        """See `InferenceBackend`."""
        self._chunk = None
        self._policy.reset()


@dataclass(frozen=True)
class RealTime:
    """The guidance of real-time chunking from the old chunk's remaining actions; see `smolact_client.Leftover`.

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
    """When a policy predicts.

    Attributes:
        refill: predict when this share of a chunk, or less, is left: 0 is `sync`, 1 predicts as often as possible.
        merge: the merge of several chunks' actions for one tick; see `chunks.MERGES`.
        executed: the maximum number of executed actions of a chunk; None for all.
        deadline: seconds that the robot holds without a chunk before an error ends the episode.
        real_time: the new chunk continues the rest of the old one; None: it does not depend on it.

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

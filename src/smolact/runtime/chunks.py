"""The queue of actions between a policy and a robot: which action is due at each tick, when chunks overlap and come late.

A tick is an action that was taken. A chunk is predicted from the observation before some tick. When it arrives, later ticks have
passed and its first actions are too late; delays are counted in ticks, so they do not depend on clocks.
Source: Shukor et al. 2025, "SmolVLA", arXiv 2506.01844, section 3.3 (asynchronous inference); Zhao et al. 2023, "ACT", arXiv
2304.13705, section 4.2 (temporal ensembling).
"""

# T actions of a chunk, A numbers of an action.

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smolact.errors import ConfigError, FeatureError, did_you_mean

Actions = NDArray[np.float32]
Merge = Callable[[Actions, Actions, int], NDArray[np.floating[Any]]]
"""Maps the due action of a tick, the new chunk's action for it, and the number of chunks merged into the former, to the merged
action."""


def weighted(share: float) -> Merge:
    """Return a merge in which the new action has the weight `share` and the old one the rest."""
    return lambda due, new, count: (1 - share) * due + share * new


def ensemble(decay: float) -> Merge:
    """Return the weighted mean of all chunks' actions for a tick; chunk k has the weight exp(−decay · k), so the oldest counts most."""

    def merge(due: Actions, new: Actions, count: int) -> NDArray[np.floating[Any]]:
        before = sum(math.exp(-decay * k) for k in range(count))
        weight = math.exp(-decay * count)
        return (before * due + weight * new) / (before + weight)

    return merge


MERGES: dict[str, Merge] = {
    "latest": weighted(1.0),
    "weighted_average": weighted(0.7),
    "average": weighted(0.5),
    "conservative": weighted(0.3),
    "ensemble": ensemble(0.01),
}


def find_merge(name: str) -> Merge:
    """Return the merge function of this name.

    Raises:
        ConfigError: there is none.
    """
    if name not in MERGES:
        raise ConfigError(
            f"Chunks can't be merged by '{name}'; ways are {', '.join(MERGES)}.{did_you_mean(name, MERGES)}"
        )
    return MERGES[name]


def checked_chunks(answer: Any, count: int, size: int | None = None) -> list[Actions]:
    """The chunks of a policy's answer to `count` requests, each checked by `check_chunk`.

    Raises:
        FeatureError: the answer is no list of so many chunks, or one of them is none.
    """
    try:
        chunks = list(answer)
    except TypeError:
        raise FeatureError(
            f"The policy answered {answer!r:.60}: expected a list of {count} chunks."
        ) from None
    if len(chunks) != count:
        raise FeatureError(f"The policy gave {len(chunks)} chunks for {count} requests.")
    return [check_chunk(chunk, size) for chunk in chunks]


def check_chunk(chunk: Any, size: int | None = None) -> Actions:
    """Return a chunk (T, A) as float32.

    Raises:
        FeatureError: it has another shape, or a number is not finite.
    """
    try:
        values = np.asarray(chunk, np.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise FeatureError(f"The policy gave no chunk of numbers: {error}.") from error
    if values.ndim != 2 or not len(values) or (size is not None and values.shape[1] != size):
        expected = "(T, A)" if size is None else f"(T, {size})"
        raise FeatureError(
            f"The policy gave {values.shape}, which is no chunk {expected}: it was trained for another action space."
        )
    if not np.isfinite(values).all():
        raise FeatureError(
            "The policy gave no chunk of finite numbers: an action is not finite. Its weights or its statistics are damaged."
        )
    return values


class Delays:
    """The delays of the last chunks, as the number of actions executed until their arrival.

    Args:
        kept: the number of delays whose maximum is the expected delay.
        warm_ups: the number of first delays to ignore, before the policy is warmed up.
    """

    def __init__(self, kept: int = 10, warm_ups: int = 1) -> None:
        self._last: deque[int] = deque(maxlen=kept)
        self._warm_ups = warm_ups

    def add(self, actions: int) -> None:
        """Record the delay of a chunk."""
        if self._warm_ups:
            self._warm_ups -= 1
        else:
            self._last.append(actions)

    def expected(self, remaining: int) -> int:
        """Return how many of the remaining actions will be executed before the next chunk; all until a delay is recorded."""
        return min(remaining, max(self._last, default=remaining))


class ChunkQueue:
    """The queue of due actions.

    Attributes:
        tick: the number of actions that were taken.
    """

    def __init__(self, merge: Merge = MERGES["latest"]) -> None:
        self._merge = merge
        self.clear()

    def clear(self) -> None:
        """Remove all actions, and count ticks from 0."""
        self.tick = 0
        self._due: deque[tuple[Actions, int]] = deque()  # (action, number of merged chunks)
        self._newest = -1

    def __len__(self) -> int:
        return len(self._due)

    def take(self) -> Actions | None:
        """Return the action of this tick, (A,); None, without counting the tick, if the queue is empty."""
        if not self._due:
            return None
        self.tick += 1
        return self._due.popleft()[0]

    def remaining(self) -> Actions:
        """Return the due actions, (n, A)."""
        return _actions(self._due)

    def put(self, chunk: Actions, tick: int, check: Callable[[Actions], object] = lambda due: None) -> int:
        """Merge a chunk (T, A) that was predicted from the observation before `tick`.

        Args:
            chunk: the actions.
            tick: when the observation was made.
            check: called with the merged actions (n, A), if there are any; the queue stays as it is if it raises.

        Returns:
            the number of the chunk's actions that are too late; all if a chunk of a later observation was merged.

        Raises:
            FeatureError: it is no chunk, or `tick` is in the future.
        """
        if chunk.ndim != 2 or not 0 <= tick <= self.tick:
            raise FeatureError(
                f"Expected a chunk (T, A) for a tick up to {self.tick}, found {chunk.shape} for {tick}."
            )
        is_outdated = tick < self._newest
        due = self._due if is_outdated else deque(self._merged(chunk[self.tick - tick :]))
        if due:
            check(_actions(due))
        if is_outdated:
            return len(chunk)
        self._due, self._newest = due, tick
        return min(self.tick - tick, len(chunk))

    def _merged(self, chunk: Actions) -> Iterator[tuple[Actions, int]]:
        before = list(self._due)
        for index, new in enumerate(chunk):
            if index < len(before):
                due, count = before[index]
                yield self._merge(due, new, count).astype(np.float32), count + 1
            else:
                yield new.astype(np.float32), 1


def _actions(due: Iterable[tuple[Actions, int]]) -> Actions:
    return np.array([action for action, _ in due], dtype=np.float32)

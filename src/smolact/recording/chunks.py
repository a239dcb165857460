"""Chunks of actions on their way to a robot: which action is due at each tick, when they overlap and come late.

A tick is an action that was taken. A chunk answers the observation before some tick; when it comes, ticks have gone by, and
its first actions with them: how many is counted, not measured, so no clock can be wrong about it.
Source: Shukor et al. 2025, "SmolVLA", arXiv 2506.01844, section 3.3 (asynchronous inference); Zhao et al. 2023, "ACT", arXiv
2304.13705, section 4.2 (temporal ensembling).
"""

# T actions of a chunk, A numbers of an action.

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smolact.errors import ConfigError, FeatureError, did_you_mean

Actions = NDArray[np.float32]
Merge = Callable[[Actions, Actions, int], NDArray[np.floating[Any]]]
"""What is due at a tick, the new chunk's action for it, and how many chunks the first is of: what is due then."""


def weighted(share: float) -> Merge:
    """The new action counts `share`, what was due the rest."""
    return lambda due, new, count: (1 - share) * due + share * new


def ensemble(decay: float) -> Merge:
    """The mean of all chunks' actions for a tick, the k-th chunk with the weight exp(−decay · k): the oldest counts most."""

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
    """A way to merge chunks by its name.

    Raises:
        ConfigError: there is none.
    """
    if name not in MERGES:
        raise ConfigError(
            f"Chunks can't be merged by '{name}'; ways are {', '.join(MERGES)}.{did_you_mean(name, MERGES)}"
        )
    return MERGES[name]


class Delays:
    """How late answers come, in actions that were carried out meanwhile: counted, so no clock can be wrong about it.

    Args:
        kept: of so many last ones the longest is what is expected of the next.
        warm_ups: so many first ones say nothing: whoever answers was not warm yet.
    """

    def __init__(self, kept: int = 10, warm_ups: int = 1) -> None:
        self._last: deque[int] = deque(maxlen=kept)
        self._warm_ups = warm_ups

    def add(self, actions: int) -> None:
        """An answer came after so many actions."""
        if self._warm_ups:
            self._warm_ups -= 1
        else:
            self._last.append(actions)

    def expected(self, left: int) -> int:
        """How many of the actions that are left will be carried out before the next answer; all, while nothing is known."""
        return min(left, max(self._last, default=left))


class ChunkQueue:
    """What is due from now on.

    Attributes:
        tick: how many actions were taken.
    """

    def __init__(self, merge: Merge = MERGES["latest"]) -> None:
        self._merge = merge
        self.clear()

    def clear(self) -> None:
        """Nothing is due, and nothing was taken."""
        self.tick = 0
        self._due: deque[tuple[Actions, int]] = deque()  # with the number of chunks that it is of
        self._newest = -1

    def __len__(self) -> int:
        return len(self._due)

    def take(self) -> Actions | None:
        """The action of this tick, (A,); None, and no tick goes by, when nothing is due."""
        if not self._due:
            return None
        self.tick += 1
        return self._due.popleft()[0]

    def remaining(self) -> Actions:
        """What is due, (n, A)."""
        return np.array([action for action, _ in self._due], dtype=np.float32)

    def merged(self, chunk: Actions, tick: int) -> Actions:
        """What would be due if `put` was called, (n, A)."""
        return np.array([action for action, _ in self._with(chunk, tick)], dtype=np.float32)

    def put(self, chunk: Actions, tick: int) -> int:
        """Add a chunk (T, A) that answers the observation before `tick`.

        Returns:
            how many of its actions come too late; all of them, if a chunk that answers a later observation is here.

        Raises:
            FeatureError: it is no chunk, or answers an observation that is still to come.
        """
        due = self._with(chunk, tick)
        if tick < self._newest:
            return len(chunk)
        self._due, self._newest = deque(due), tick
        return min(self.tick - tick, len(chunk))

    def _with(self, chunk: Actions, tick: int) -> list[tuple[Actions, int]]:
        if chunk.ndim != 2 or not 0 <= tick <= self.tick:
            raise FeatureError(
                f"Expected a chunk (T, A) for a tick up to {self.tick}, found {chunk.shape} for {tick}."
            )
        if tick < self._newest:
            return list(self._due)
        late = self.tick - tick
        before = list(self._due)
        found: list[tuple[Actions, int]] = []
        for place, new in enumerate(chunk[late:]):
            if place < len(before):
                due, count = before[place]
                found.append((self._merge(due, new, count).astype(np.float32), count + 1))
            else:
                found.append((new.astype(np.float32), 1))
        return found

"""A loop that holds its rate on a monotonic clock, and knows how well it did."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Timing:
    """How well a loop held its rate.

    Attributes:
        rate: ticks a second, as measured; None before the second tick.
        jitter_p50_ms, jitter_p99_ms: how far the time between two ticks was from what was asked.
        late: ticks that began more than half a period after they were due.
        missed: ticks that fell out because the one before took too long.
    """

    rate: float | None
    jitter_p50_ms: float
    jitter_p99_ms: float
    late: int
    missed: int


class RateLimiter:
    """Ticks at a fixed rate. A tick that comes too late is not made up for by a hurried one: its place is left out.

    Args:
        fps: ticks a second.
        clock: seconds, monotonic.
        sleep: waits so many seconds.
    """

    def __init__(
        self,
        fps: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._period, self._clock, self._sleep = 1 / fps, clock, sleep
        self._due: float | None = None
        self._began = 0.0
        self._intervals: list[float] = []
        self._late = 0
        self.missed = 0

    def tick(self) -> None:
        """Wait until the next tick is due; the first one is at once."""
        now = self._clock()
        if self._due is None:
            self._due = self._began = now
            return
        self._due += self._period
        while now < self._due:
            self._sleep(self._due - now)
            now = self._clock()
        skipped = int((now - self._due) / self._period)
        self.missed += skipped
        self._due += skipped * self._period
        self._late += now - self._due > self._period / 2 or skipped > 0
        self._intervals.append(now - self._began)
        self._began = now

    def pause(self) -> None:
        """The next tick is a first one: the time until then counts for nothing."""
        self._due = None

    def timing(self) -> Timing:
        """What was measured so far."""
        if not self._intervals:
            return Timing(None, 0.0, 0.0, self._late, self.missed)
        intervals = np.array(self._intervals)
        median, rare = np.quantile(np.abs(intervals - self._period) * 1000, [0.5, 0.99])
        rate = len(intervals) / max(float(intervals.sum()), 1e-9)
        return Timing(rate, float(median), float(rare), self._late, self.missed)

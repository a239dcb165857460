"""A rate limiter on a monotonic clock, with statistics of its timing."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Timing:
    """The timing of a loop.

    Attributes:
        rate: ticks a second, as measured; None before the second tick.
        jitter_p50_ms, jitter_p99_ms: quantiles of the deviation of the time between two ticks from the period.
        late: ticks that began more than half a period after they were due.
        missed: ticks that were skipped because the previous one took too long.
    """

    rate: float | None
    jitter_p50_ms: float
    jitter_p99_ms: float
    late: int
    missed: int


class RateLimiter:
    """Ticks at a fixed rate. A missed tick is skipped, not made up for.

    Args:
        fps: ticks a second.
        clock: the monotonic time in seconds.
        sleep: the function that waits so many seconds.

    Attributes:
        late, missed: as in `Timing`.
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
        self._seconds = 0.0
        self.late = self.missed = 0

    def tick(self) -> None:
        """Wait until the next tick is due; the first one does not wait."""
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
        self.late += now - self._due > self._period / 2 or skipped > 0
        self._intervals.append(now - self._began)
        self._seconds += now - self._began
        self._began = now

    @property
    def rate(self) -> float | None:
        """Ticks a second, as measured; None before the second tick."""
        return len(self._intervals) / max(self._seconds, 1e-9) if self._intervals else None

    def remaining(self) -> float:
        """Return the seconds until the next tick is due; 0 if it is late."""
        return 0.0 if self._due is None else max(0.0, self._due + self._period - self._clock())

    def pause(self) -> None:
        """Treat the next tick as the first: the time until then is not counted."""
        self._due = None

    def timing(self) -> Timing:
        """Return the timing so far."""
        if not self._intervals:
            return Timing(None, 0.0, 0.0, self.late, self.missed)
        intervals = np.array(self._intervals)
        median, p99 = np.quantile(np.abs(intervals - self._period) * 1000, [0.5, 0.99])
        return Timing(self.rate, float(median), float(p99), self.late, self.missed)

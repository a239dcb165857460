"""The length of a run, in steps (`--steps`) or minutes (`--train_minutes`). The learning rate follows the spent share."""

from __future__ import annotations

import statistics
import time
from collections import deque

from smolact.training.config import TrainConfig

LEAST_STEPS = 30
"""Minimum number of steps of a timed run; fewer teach nothing."""
COMPLETE = 0.98
"""Share of its time after which a resumed timed run is complete."""


class Budget:
    """A run's budget and its spent part.

    A timed run ends before the step that would exceed its minutes, which include the preparation. The learning rate follows
    the spent share of the time after the preparation.

    Args:
        minutes: duration, from `began`; None: the run counts steps.
        began: start of the command, by `time.monotonic`; now, when None.

    Attributes:
        step: the last finished step.
        seconds: seconds spent, as of that step; the same on all processes.
        lead: seconds spent before the first step.
    """

    def __init__(self, steps: int, minutes: float | None = None, began: float | None = None) -> None:
        self.steps, self.minutes, self.step = steps, minutes, 0
        self.seconds = self.lead = self._before = 0.0
        self._began = time.monotonic() if began is None else began
        self._last: deque[float] = deque(maxlen=5)

    def resume(self, step: int, seconds: float, lead: float) -> None:
        """Resume after a checkpoint's `step`."""
        self.step, self.lead, self._before = step, lead, seconds
        self.seconds = self.now()

    def begin(self, seconds: float) -> None:
        """Begin this process's first step, after `seconds` of the run."""
        self.seconds = seconds
        if self.step == 0:
            self.lead = seconds

    def now(self) -> float:
        """Return the seconds of the run so far, by the clock of this process."""
        return self._before + time.monotonic() - self._began

    def spend(self, seconds: float) -> None:
        """Finish a step, after `seconds` of the run."""
        self._last.append(seconds - self.seconds)
        self.seconds = seconds
        self.step += 1

    @property
    def share(self) -> float:
        """The spent share, from 0 to 1; in a slow timed run, that of `LEAST_STEPS`."""
        if self.minutes is None:
            return min(1.0, self.step / self.steps)
        left = max(60 * self.minutes - self.lead, 1e-9)
        return min(1.0, (self.seconds - self.lead) / left, self.step / LEAST_STEPS)

    @property
    def is_over(self) -> bool:
        """Whether no further step fits."""
        if self.minutes is None:
            return self.step >= self.steps
        typical = statistics.median(self._last) if self._last else 0.0
        return self.step >= LEAST_STEPS and self.seconds + typical > 60 * self.minutes

    @property
    def seconds_left(self) -> float | None:
        """Estimated seconds until the end; None before the first step of a run that counts steps."""
        if self.minutes is not None:
            return max(0.0, 60 * self.minutes - self.now())
        return statistics.median(self._last) * (self.steps - self.step) if self._last else None


def is_spent(config: TrainConfig, step: int, seconds: float) -> bool:
    """Whether a run that was saved after `step`, and so many seconds, is complete."""
    if config.train_minutes is None:
        return step >= config.n_steps
    return seconds >= COMPLETE * 60 * config.train_minutes

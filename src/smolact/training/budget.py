"""How long a run goes: so many steps (`--steps`), or so many minutes (`--train_minutes`). The learning rate follows what is spent of it."""

from __future__ import annotations

import statistics
import time
from collections import deque

from smolact.training.config import TrainConfig

LEAST_STEPS = 30
"""A run by the clock takes so many steps at least, however slow the machine is: fewer teach nothing."""
COMPLETE = 0.98
"""A run by the clock that has spent this share has nothing left to do when it is resumed."""


class Budget:
    """What a run may spend, and what of it is spent.

    By the clock a run ends before the step that would end too late. The minutes count from the start of the command: what is
    made before the first step is in them, and the learning rate follows the share of what is left after it.

    Args:
        steps: how many the run takes; without meaning where `minutes` are given.
        minutes: after how many the last step is done, counted from `began`; None: it counts steps.
        began: when the command began, by `time.monotonic`; now, when None.

    Attributes:
        step: the last one that is done.
        seconds: what is spent, as of that step. Several processes are told the same.
        lead: what was spent before the first step.
    """

    def __init__(self, steps: int, minutes: float | None = None, began: float | None = None) -> None:
        self.steps, self.minutes, self.step = steps, minutes, 0
        self.seconds = self.lead = self._before = 0.0
        self._began = time.monotonic() if began is None else began
        self._last: deque[float] = deque(maxlen=5)

    @classmethod
    def of(cls, config: TrainConfig, began: float | None = None) -> Budget:
        """That of a run's settings."""
        return cls(config.steps, config.train_minutes, began)

    def resume(self, step: int, seconds: float, lead: float) -> None:
        """Go on after a checkpoint's `step`."""
        self.step, self.lead, self._before = step, lead, seconds
        self.seconds = self.now()

    def begin(self, seconds: float) -> None:
        """The first step of this process's life comes next."""
        self.seconds = seconds
        if self.step == 0:
            self.lead = seconds

    def now(self) -> float:
        """Seconds that the run has taken, by the clock of this process."""
        return self._before + time.monotonic() - self._began

    def spend(self, seconds: float) -> None:
        """A step is done, and so many seconds are spent in all."""
        self._last.append(seconds - self.seconds)
        self.seconds = seconds
        self.step += 1

    @property
    def share(self) -> float:
        """What is spent, from 0 to 1. A run that is slower than `LEAST_STEPS` allow is measured by these."""
        if self.minutes is None:
            return min(1.0, self.step / self.steps)
        left = max(60 * self.minutes - self.lead, 1e-9)
        return min(1.0, (self.seconds - self.lead) / left, self.step / LEAST_STEPS)

    @property
    def is_over(self) -> bool:
        """Whether no further step is to be taken."""
        if self.minutes is None:
            return self.step >= self.steps
        usual = statistics.median(self._last) if self._last else 0.0
        return self.step >= LEAST_STEPS and self.seconds + usual > 60 * self.minutes

    @property
    def seconds_left(self) -> float | None:
        """Until the end; None before there is a step to tell it by."""
        if self.minutes is not None:
            return max(0.0, 60 * self.minutes - self.now())
        return statistics.median(self._last) * (self.steps - self.step) if self._last else None


def is_spent(minutes: float, seconds: float) -> bool:
    """Whether a run by the clock that was saved after so many seconds is complete."""
    return seconds >= COMPLETE * 60 * minutes

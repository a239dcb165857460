"""A scripted expert as the person who corrects a policy: it takes over when it foresees a failure, and gives back.

The expert estimates how many steps it would need from here to the goal. A policy that does well lowers that number. One that
stands still, circles, pushes past the goal or heads for another object does not.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import gymnasium

PATIENCE = 12
"""Steps without progress, after which it takes over."""
PROGRESS = 1.0
"""By so many steps the estimate must fall to be progress."""
SETBACK = 5.0
"""It takes over at once when the estimate is so many steps above its lowest."""
GAIN = 12.0
"""It gives back when the estimate is so many steps below that at its take-over."""


@runtime_checkable
class EstimatesSteps(Protocol):
    """An expert that can judge a situation; optional."""

    def steps_left(self, env: gymnasium.Env[Any, Any]) -> float:
        """Return about how many steps it needs from the environment's present state to the goal; 0 at the goal."""
        ...


class Supervisor:
    """Watches one episode of a policy.

    Args:
        expert: the judge.
    """

    def __init__(self, expert: EstimatesSteps) -> None:
        self._expert = expert
        self._is_driving = False
        self._lowest = float("inf")
        self._taken_over_at = 0.0
        self._idle = 0

    def takes_over(self, env: gymnasium.Env[Any, Any]) -> bool:
        """Return whether the expert drives in the present state; called once before every step."""
        left = self._expert.steps_left(env)
        if self._is_driving:
            if self._taken_over_at - left >= GAIN:
                self._is_driving, self._lowest, self._idle = False, left, 0
            return self._is_driving
        self._idle = 0 if left <= self._lowest - PROGRESS or left == 0 else self._idle + 1
        self._lowest = left if self._idle == 0 else self._lowest
        if self._idle >= PATIENCE or left - self._lowest >= SETBACK:
            self._is_driving, self._taken_over_at = True, left
        return self._is_driving

"""What is left of a chunk when the next one is asked for: the new one is to go on from there (real-time chunking)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smolact_client.errors import ObservationError
from smolact_client.protocol import Array
from smolact_client.schema import Schema

LEFTOVER = "leftover"
"""Of the map's field and of the array."""
SCHEDULES = ("exp", "linear", "ones", "zeros")
MAX_WEIGHT = 5.0
"""β in the paper on real-time chunking, which uses 5."""
HIGHEST_WEIGHT = 1000.0


@dataclass(frozen=True)
class Leftover:
    """What a robot will do, unless it is told something else, and how strongly a new chunk is held to it.

    Attributes:
        actions: (n, A) float32 in the robot's units, n at least 1: what is due from the observation's tick on.
        delay: so many of them will have been carried out when the answer is here.
        schedule: how much those behind them count: `exp` or `linear` (less and less), `ones`, `zeros`.
        max_weight: the bound of the guidance's weight.
        jacobian: guide through the network; without, in half the time, and also where the network is sure of something else.
    """

    actions: NDArray[np.float32]
    delay: int
    schedule: str = "exp"
    max_weight: float = MAX_WEIGHT
    jacobian: bool = True

    @property
    def kind(self) -> tuple[Any, ...]:
        """What questions that are answered together have in common."""
        return self.schedule, self.max_weight, self.jacobian

    @property
    def fields(self) -> dict[str, Any]:
        """What an observation's map tells of it."""
        weight, schedule = float(self.max_weight), self.schedule
        told = {"delay": self.delay, "schedule": schedule, "max_weight": weight, "jacobian": self.jacobian}
        return {LEFTOVER: told}


def read_leftover(fields: Mapping[str, Any], array: Array | None) -> Leftover | None:
    """The leftover of a message, not checked yet; None if it has none.

    Raises:
        ObservationError: half of it is missing, or something else is in its place.
    """
    told = fields.get(LEFTOVER)
    if told is None and array is None:
        return None
    if not isinstance(told, dict) or not isinstance(array, np.ndarray):
        raise ObservationError(f"A '{LEFTOVER}' is a map and an array of numbers: one of them is missing.")
    return Leftover(
        array,
        told.get("delay"),  # type: ignore[arg-type]  # checked below
        told.get("schedule", "exp"),
        told.get("max_weight", MAX_WEIGHT),
        told.get("jacobian", True),
    )


def check_leftover(schema: Schema, leftover: Leftover) -> None:
    """Whether a policy can go on from it. Both sides ask.

    Raises:
        ObservationError: it can't, or the actions are no finite (n, A) float32, or a number is out of its range.
    """
    actions, delay, weight = leftover.actions, leftover.delay, leftover.max_weight
    if not schema.takes_leftover:
        raise ObservationError(
            f"A '{schema.policy}' policy can't go on from what is left of a chunk: leave '{LEFTOVER}' out."
        )
    if (
        actions.dtype != np.float32
        or actions.ndim != 2
        or actions.shape[1] != schema.action
        or not 1 <= len(actions) <= schema.chunk_size
    ):
        raise ObservationError(
            f"'{LEFTOVER}' is {actions.shape} {actions.dtype}: expected (1 to {schema.chunk_size}, {schema.action}) float32."
        )
    if not np.isfinite(actions).all():
        raise ObservationError(f"'{LEFTOVER}' holds a number that is not finite.")
    if type(delay) is not int or not 0 <= delay < 2**31:
        raise ObservationError(f"The delay of '{LEFTOVER}' is {delay!r:.40}: expected a count of actions.")
    if leftover.schedule not in SCHEDULES or type(leftover.jacobian) is not bool:
        raise ObservationError(
            f"The schedule of '{LEFTOVER}' is {leftover.schedule!r:.40} (one of {', '.join(SCHEDULES)}), its jacobian "
            f"{leftover.jacobian!r:.40} (true or false)."
        )
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight <= HIGHEST_WEIGHT:
        raise ObservationError(
            f"The weight of '{LEFTOVER}' is {weight!r:.40}: expected a number above 0, up to {HIGHEST_WEIGHT:g}."
        )

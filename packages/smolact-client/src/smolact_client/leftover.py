"""The remaining actions of a chunk when the next one is requested, which continues them (real-time chunking)."""

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
"""The key of the map's field and of the array."""
SCHEDULES = ("exp", "linear", "ones", "zeros")
MAX_WEIGHT = 5.0
"""The β of real-time chunking; the paper uses 5."""
HIGHEST_WEIGHT = 1000.0


@dataclass(frozen=True)
class Leftover:
    """The remaining actions of a chunk, and how strongly the new chunk is guided towards them.

    Attributes:
        actions: (n, A) float32 in the robot's units, n at least 1, from the observation's tick on.
        delay: how many of them will have been executed when the answer arrives.
        schedule: the weights of the later ones: `exp` or `linear` (falling), `ones`, `zeros`.
        max_weight: the bound of the guidance weight.
        jacobian: differentiate through the network; False takes half the time, but also bends what the network is sure of.
    """

    actions: NDArray[np.float32]
    delay: int
    schedule: str = "exp"
    max_weight: float = MAX_WEIGHT
    jacobian: bool = True

    @property
    def kind(self) -> tuple[Any, ...]:
        """The settings that all requests of a batch must share."""
        return self.schedule, self.max_weight, self.jacobian

    @property
    def fields(self) -> dict[str, Any]:
        """The leftover's part of an observation's map."""
        weight, schedule = float(self.max_weight), self.schedule
        data = {"delay": self.delay, "schedule": schedule, "max_weight": weight, "jacobian": self.jacobian}
        return {LEFTOVER: data}


def read_leftover(fields: Mapping[str, Any], array: Array | None) -> Leftover | None:
    """Return the leftover of a message, not yet checked; None if it has none.

    Raises:
        ObservationError: the map or the array is missing, or has another type.
    """
    settings = fields.get(LEFTOVER)
    if settings is None and array is None:
        return None
    if not isinstance(settings, dict) or not isinstance(array, np.ndarray):
        raise ObservationError(f"A '{LEFTOVER}' is a map and an array of numbers: one of them is missing.")
    return Leftover(
        array,
        settings.get("delay"),  # type: ignore[arg-type]  # checked below
        settings.get("schedule", "exp"),
        settings.get("max_weight", MAX_WEIGHT),
        settings.get("jacobian", True),
    )


def check_leftover(schema: Schema, leftover: Leftover) -> None:
    """Raise an `ObservationError` unless the policy can continue from the leftover. Client and server both check.

    Raises:
        ObservationError: it can't, the actions are not finite (n, A) float32, or a setting is out of its range.
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

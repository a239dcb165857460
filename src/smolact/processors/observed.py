"""Whether a policy can look at an observation, asked when it is normalized: so that its fault is not taken for the policy's.

A broken sensor gives a number that is finite and still nowhere near the training's data. Normalized it overflows, or the policy's
arithmetic does, and what comes out looks like damaged weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from smolact.errors import BadObservationError
from smolact.processors.pipeline import rename_map_of
from smolact.types import is_image_key

FARTHEST = 1e6
"""The largest normalized number: a million standard deviations, or widths of the range, from the training's data."""
_STILL = 1e-6
"""A number that varied by less than this share of its size in training never moved: any deviation is large beside that."""

_PREFIX = "observation."


def check_observed(
    raw: Mapping[str, Any],
    batch: Mapping[str, Any],
    preprocess: Any,
    names: Mapping[str, Sequence[str]],
) -> None:
    """Check the numbers of an observation that was normalized for a policy.

    Args:
        raw: the observation in the robot's units, under its own names; vectors (B, D).
        batch: what the preprocessor made of it.
        preprocess: the preprocessor, which knows other names and the statistics.
        names: what the numbers of a vector of `raw` are called, where that is known.

    Raises:
        BadObservationError: a number is not finite, or farther from the training's data than `FARTHEST`; the message names it.
    """
    statistics: dict[str, Mapping[str, Tensor]] = {}
    given = {new: old for old, new in rename_map_of(preprocess).items()}
    for step in getattr(preprocess, "steps", ()):
        statistics |= getattr(step, "statistics", {})
    for key, value in batch.items():
        if not key.startswith(_PREFIX) or is_image_key(key):
            continue
        if not isinstance(value, Tensor) or not value.is_floating_point():
            continue
        far = ~(value.abs() <= FARTHEST)
        if not far.any():  # one look at the device, where the numbers are needed next
            continue
        known, old = statistics.get(key, {}), given.get(key, key)
        name = old if old in raw else key  # a source may have the policy's own name
        numbers = torch.as_tensor(raw[name]).to("cpu", torch.float32)
        far = far.cpu() & ~_is_off_a_little(numbers, known)
        if far.any():
            place = tuple(int(index) for index in far.nonzero()[0])
            raise _fault(name, float(numbers[place]), place[-1], known, names.get(name, ()))


def _is_off_a_little(numbers: Tensor, known: Mapping[str, Tensor]) -> Tensor:
    """Which numbers never moved in the training and are not far from there: normalized they are large for want of a scale."""
    widths = [known["std"]] if "std" in known else []
    widths += [known[high] - known[low] for low, high in (("min", "max"), ("q01", "q99")) if high in known]
    centre = next((known[name] for name in ("mean", "max", "q99") if name in known), None)
    if not widths or centre is None:
        return torch.zeros(numbers.shape, dtype=torch.bool)
    size = 1 + centre.abs()
    still = torch.stack([width.abs() <= _STILL * size for width in widths]).any(0)
    return still & ((numbers - centre).abs() <= size / _STILL)


def _fault(
    key: str, found: float, number: int, known: Mapping[str, Tensor], called: Sequence[str]
) -> BadObservationError:
    which = (
        f"'{called[number]}' of {key}"
        if number < len(called)
        else f"Number {number} (counted from 0) of {key}"
    )
    ranges = [
        f"{word} {known[name][number].item():.4g}"
        for word, name in (
            ("mean", "mean"),
            ("standard deviation", "std"),
            ("lowest", "min"),
            ("highest", "max"),
        )
        if name in known
    ]
    training = f" In the training's data it had: {', '.join(ranges)}." if ranges else ""
    return BadObservationError(
        f"{which} is {found:.4g}, and the policy can't look at that: the observation is at fault, not the policy.{training} "
        "See to the sensor and the driver that gave it, and to its units."
    )

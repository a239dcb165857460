"""Check of a normalized observation, so that a faulty sensor is not mistaken for a fault of the policy.

A broken sensor returns a number that is finite and still far from the training data. Normalized it overflows, or the policy's
arithmetic does, and the result looks like damaged weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from smolact.errors import BadObservationError
from smolact.processors.pipeline import rename_map_of
from smolact.types import is_image_key

MAX_NORMALIZED = 1e6
"""The largest normalized number: a million standard deviations, or widths of the range, from the training data."""
_CONSTANT_SHARE = 1e-6
"""A number whose range in training is below this share of its size is constant: any deviation from it is relatively large."""

_PREFIX = "observation."


def check_observed(
    raw: Mapping[str, Any],
    batch: Mapping[str, Any],
    preprocess: Any,
    names: Mapping[str, Sequence[str]],
) -> None:
    """Raise if a number of a normalized observation is implausible.

    Args:
        raw: the observation in the robot's units, under its own names; vectors (B, D).
        batch: the preprocessor's output.
        preprocess: the preprocessor, for its rename map and statistics.
        names: the names of the dimensions of a vector of `raw`, if known.

    Raises:
        BadObservationError: a number is not finite, or farther from the training data than `MAX_NORMALIZED`; the message names it.
    """
    statistics: dict[str, Mapping[str, Tensor]] = {}
    original_names = {new: original for original, new in rename_map_of(preprocess).items()}
    for step in getattr(preprocess, "steps", ()):
        statistics |= getattr(step, "statistics", {})
    for key, value in batch.items():
        if not key.startswith(_PREFIX) or is_image_key(key):
            continue
        if not isinstance(value, Tensor) or not value.is_floating_point():
            continue
        far = ~(value.abs() <= MAX_NORMALIZED)
        if not far.any():  # one synchronization with the device
            continue
        stats, original = statistics.get(key, {}), original_names.get(key, key)
        name = original if original in raw else key  # a source may have the policy's own name
        numbers = torch.as_tensor(raw[name]).to("cpu", torch.float32)
        far = far.cpu() & ~_near_constant(numbers, stats)
        if far.any():
            position = tuple(int(index) for index in far.nonzero()[0])
            raise _fault(name, float(numbers[position]), position[-1], stats, names.get(name, ()))


def _near_constant(numbers: Tensor, stats: Mapping[str, Tensor]) -> Tensor:
    """Return a mask of numbers that were constant in training and are still close: they are large only for want of a scale."""
    widths = [stats["std"]] if "std" in stats else []
    widths += [stats[high] - stats[low] for low, high in (("min", "max"), ("q01", "q99")) if high in stats]
    centre = next((stats[name] for name in ("mean", "max", "q99") if name in stats), None)
    if not widths or centre is None:
        return torch.zeros(numbers.shape, dtype=torch.bool)
    size = 1 + centre.abs()
    still = torch.stack([width.abs() <= _CONSTANT_SHARE * size for width in widths]).any(0)
    return still & ((numbers - centre).abs() <= size / _CONSTANT_SHARE)


def _fault(
    key: str, value: float, index: int, stats: Mapping[str, Tensor], names: Sequence[str]
) -> BadObservationError:
    which = (
        f"'{names[index]}' of {key}" if index < len(names) else f"Number {index} (counted from 0) of {key}"
    )
    ranges = [
        f"{word} {stats[name][index].item():.4g}"
        for word, name in (
            ("mean", "mean"),
            ("standard deviation", "std"),
            ("lowest", "min"),
            ("highest", "max"),
        )
        if name in stats
    ]
    training = f" In the training's data it had: {', '.join(ranges)}." if ranges else ""
    return BadObservationError(
        f"{which} is {value:.4g}, and the policy can't look at that: the observation is at fault, not the policy.{training} "
        "See to the sensor and the driver that gave it, and to its units."
    )

"""Compare features of two datasets, or of a dataset and a robot, before they are merged or replayed."""

from __future__ import annotations

import math
from typing import Any

from smolact.datasets.depth import depth_encoding
from smolact.datasets.format import UNITS, Feature, flat_names
from smolact_client.schema import joint_name, same_in_another_order, same_names


def differences(
    name: str, here: Feature, there: Feature, sides: tuple[str, str], *, dtype: bool = True
) -> list[str]:
    """A line for each property in which two features differ: dtype, shape, names, depth encoding, units.

    Names are compared only if both have one for each number, and not for cameras.

    Args:
        name: the name of the features.
        here, there: the features; cameras are compared as (C, H, W).
        sides: a phrase for each of them, such as "in the dataset".
        dtype: whether the dtype, or the storage of images, must match.
    """
    properties = _properties(here) | {"the units": _reordered(_units(here), here, there)}
    lines = []
    for (what, first), second in zip(properties.items(), _properties(there).values(), strict=True):
        equal = same_names(first, second) if what == "the names" and first and second else first == second
        if not (equal or None in (first, second) or (what == "the dtype" and not dtype)):
            lines.append(f"'{name}' has {what} {first} {sides[0]} and {second} {sides[1]}")
    return lines


def order_of_names(feature: Feature, wanted: Feature) -> list[int] | None:
    """The permutation of the numbers of `feature` into the order of the names of `wanted`.

    None unless both have the same unique names in different orders.
    """
    own, other = ([joint_name(name) for name in each.dimension_names] for each in (feature, wanted))
    if len(feature.shape) != 1 or not same_in_another_order(own, other):
        return None
    return [own.index(name) for name in other]


def _properties(feature: Feature) -> dict[str, Any]:
    shape = feature.image_shape if feature.is_image else feature.shape
    names = [] if feature.is_image else flat_names(feature.names)
    return {
        "the dtype": feature.dtype,
        "the shape": tuple(shape),
        "the names": names if names and len(names) == math.prod(feature.shape) else None,
        "the depth": {name: value for name, value in depth_encoding(feature).items() if value is not None},
        "the units": _units(feature),
    }


def _units(feature: Feature) -> list[str] | None:
    units = flat_names(feature.info.get(UNITS))
    return units if len(units) == math.prod(feature.shape) else None


def _reordered(units: list[str] | None, feature: Feature, wanted: Feature) -> list[str] | None:
    """The units in the order of `wanted`, if only the order of the names differs."""
    order = order_of_names(feature, wanted)
    return units if units is None or order is None else [units[index] for index in order]

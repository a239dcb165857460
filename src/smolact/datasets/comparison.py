"""Compare features of two datasets, or of a dataset and a robot, before they are merged or replayed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from smolact.datasets.depth import depth_encoding
from smolact.datasets.format import UNITS, Feature, flat_names
from smolact_client.schema import joint_name, same_in_another_order, same_names


class Difference(NamedTuple):
    """A differing property (dtype, shape, names, depth encoding, units) of two features, and both values."""

    what: str
    here: Any
    there: Any


def differences(here: Feature, there: Feature, *, dtype: bool = True) -> list[Difference]:
    """The differences of two features; names only if both have one for each number, and not for cameras.

    Args:
        here, there: the features; cameras are compared as (C, H, W).
        dtype: whether the dtype, or the storage of images, must match.
    """
    properties = _properties(here) | {"the units": _reordered(_units(here), here, there)}
    sides = zip(properties.items(), _properties(there).values(), strict=True)
    return [
        Difference(what, first, second)
        for (what, first), second in sides
        if None not in (first, second) and not _equal(what, first, second) and (dtype or what != "the dtype")
    ]


def order_of_names(feature: Feature, wanted: Feature) -> list[int] | None:
    """The permutation of the numbers of `feature` into the order of the names of `wanted`.

    None unless both have the same unique names in different orders.
    """
    own, other = ([joint_name(name) for name in each.dimension_names] for each in (feature, wanted))
    if len(feature.shape) != 1 or not same_in_another_order(own, other):
        return None
    return [own.index(name) for name in other]


def another_robot(here: str | None, there: str | None) -> bool:
    """Whether both robot types are known and differ."""
    return bool(here and there) and here != there


def told(name: str, found: Sequence[Difference], here: str, there: str) -> list[str]:
    """A line for each difference; `here` and `there` are phrases such as "in the dataset"."""
    return [f"'{name}' has {each.what} {each.here} {here} and {each.there} {there}" for each in found]


def _equal(what: str, first: Any, second: Any) -> bool:
    return same_names(first, second) if what == "the names" else bool(first == second)


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

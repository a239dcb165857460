"""Whether the numbers of two datasets, or of a dataset and a robot, mean the same: the one comparison for all who join or play them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from smolact.datasets.depth import meaning
from smolact.datasets.format import UNITS, Feature, flat_names
from smolact_client.schema import joint_name, same_in_another_order, same_names


class Difference(NamedTuple):
    """What of a feature differs, and what each side says: dtype, shape, names of its numbers, meaning of depth, units."""

    what: str
    here: Any
    there: Any


def differences(here: Feature, there: Feature, *, dtype: bool = True) -> list[Difference]:
    """In what two features differ; names only where both give each number one, and never a camera's.

    Args:
        here, there: the features; cameras are compared as (C, H, W).
        dtype: whether the type of the numbers, or how pictures are stored, has to be the same.
    """
    own = _described(here) | {"the units": _in_order_of(_units(here), here, there)}
    sides = zip(own.items(), _described(there).values(), strict=True)
    return [
        Difference(what, one, other)
        for (what, one), other in sides
        if None not in (one, other) and not _alike(what, one, other) and (dtype or what != "the dtype")
    ]


def order_of_names(feature: Feature, wanted: Feature) -> list[int] | None:
    """Which number of `feature` comes first, second, … so that its names are in the order of `wanted`'s.

    None if it has not the same names, each once, in another order.
    """
    own, other = ([joint_name(name) for name in one.dimension_names] for one in (feature, wanted))
    if len(feature.shape) != 1 or not same_in_another_order(own, other):
        return None
    return [own.index(name) for name in other]


def another_robot(here: str | None, there: str | None) -> bool:
    """Whether both say which robot they are of, and it is not the same."""
    return bool(here and there) and here != there


def told(name: str, found: Sequence[Difference], here: str, there: str) -> list[str]:
    """A line for each difference of the feature `name`, with what both sides say; `here` and `there` end it, as "in the dataset"."""
    return [f"'{name}' has {each.what} {each.here} {here} and {each.there} {there}" for each in found]


def _alike(what: str, one: Any, other: Any) -> bool:
    return same_names(one, other) if what == "the names" else bool(one == other)


def _described(feature: Feature) -> dict[str, Any]:
    shape = feature.image_shape if feature.is_image else feature.shape
    names = [] if feature.is_image else flat_names(feature.names)
    return {
        "the dtype": feature.dtype,
        "the shape": tuple(shape),
        "the names": names if names and len(names) == math.prod(feature.shape) else None,
        "the depth": {name: value for name, value in meaning(feature).items() if value is not None},
        "the units": _units(feature),
    }


def _units(feature: Feature) -> list[str] | None:
    units = flat_names(feature.info.get(UNITS))
    return units if len(units) == math.prod(feature.shape) else None


def _in_order_of(units: list[str] | None, feature: Feature, wanted: Feature) -> list[str] | None:
    """Units by joint, where the same joints are in another order: that is a matter of the names alone."""
    order = order_of_names(feature, wanted)
    return units if units is None or order is None else [units[place] for place in order]

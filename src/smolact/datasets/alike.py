"""Whether the numbers of two datasets, or of a dataset and a robot, mean the same: the one comparison for all who join or play them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from smolact.datasets.depth import meaning
from smolact.datasets.format import Feature, flat_names


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
    sides = zip(_described(here).items(), _described(there).values(), strict=True)
    return [
        Difference(what, one, other)
        for (what, one), other in sides
        if one != other and None not in (one, other) and (dtype or what != "the dtype")
    ]


def order_of_names(feature: Feature, wanted: Feature) -> list[int] | None:
    """Which number of `feature` comes first, second, … so that its names are in the order of `wanted`'s.

    None if it has not the same names, each once, in another order.
    """
    own, other = feature.dimension_names, wanted.dimension_names
    if len(feature.shape) != 1 or own == other or sorted(own) != sorted(other):
        return None
    return [own.index(name) for name in other]


def another_robot(here: str | None, there: str | None) -> bool:
    """Whether both say which robot they are of, and it is not the same."""
    return bool(here and there) and here != there


def told(name: str, found: Sequence[Difference], here: str, there: str) -> list[str]:
    """A line for each difference of the feature `name`, with what both sides say; `here` and `there` end it, as "in the dataset"."""
    return [f"'{name}' has {each.what} {each.here} {here} and {each.there} {there}" for each in found]


def _described(feature: Feature) -> dict[str, Any]:
    shape = feature.image_shape if feature.is_image else feature.shape
    names = [] if feature.is_image else flat_names(feature.names)
    return {
        "the dtype": feature.dtype,
        "the shape": tuple(shape),
        "the names": names if names and len(names) == math.prod(feature.shape) else None,
        "the depth": {name: value for name, value in meaning(feature).items() if value is not None},
        "the units": feature.info.get("units"),
    }

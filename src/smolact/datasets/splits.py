"""Update the splits in `info.json`, such as {"train": "0:8", "val": "8:10"}, when episodes are added or removed."""

from __future__ import annotations

import bisect
import re
from collections.abc import Mapping, Sequence
from typing import Any

_TRAIN = "train"


def all_in_train(total: int) -> dict[str, str]:
    """The default splits: all `total` episodes are in `train`."""
    return {_TRAIN: f"0:{total}"}


def extended(info: Mapping[str, Any], total: int) -> dict[str, Any]:
    """The splits after episodes were appended to the dataset of `info`, `total` in all.

    The new episodes are in `train` if that split ended with the dataset and no split reached further, else in none. Other splits stay.
    """
    splits = info.get("splits")
    if not isinstance(splits, dict) or not splits:
        return all_in_train(total)
    ranges = {name: edges for name, text in splits.items() if (edges := _range(text))}
    end = max([info["total_episodes"], *(last for _, last in ranges.values())])
    if total <= info["total_episodes"] or _TRAIN not in ranges or ranges[_TRAIN][1] != end:
        return splits
    return {**splits, _TRAIN: f"{ranges[_TRAIN][0]}:{total}"}


def subset(info: Mapping[str, Any], numbers: Sequence[int]) -> dict[str, str]:
    """The splits of the episodes `numbers` of the dataset of `info`, renumbered from 0.

    Episodes that `info` does not count are treated as in `extended`. Empty splits are dropped. All episodes are in `train` if no split
    is left, a split is no range, or the episodes are not ascending.
    """
    splits = extended(info, max(numbers, default=-1) + 1)
    ranges = {name: _range(text) for name, text in splits.items()}
    if not all(ranges.values()) or list(numbers) != sorted(numbers):
        return all_in_train(len(numbers))
    remaining = {}
    for name, edges in ranges.items():
        begin, end = (bisect.bisect_left(numbers, edge) for edge in edges or ())
        if begin < end:
            remaining[name] = f"{begin}:{end}"
    return remaining or all_in_train(len(numbers))


def _range(text: Any) -> tuple[int, int] | None:
    edges = re.fullmatch(r"([0-9]{1,18}):([0-9]{1,18})", str(text))
    return (int(edges[1]), int(edges[2])) if edges else None

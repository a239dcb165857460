"""The named splits of `info.json`, such as {"train": "0:8", "val": "8:10"}: what becomes of them when episodes come or go."""

from __future__ import annotations

import bisect
import re
from collections.abc import Mapping, Sequence
from typing import Any

_TRAIN = "train"


def all_in_train(total: int) -> dict[str, str]:
    """The splits of a dataset that names none: all of its `total` episodes are for training."""
    return {_TRAIN: f"0:{total}"}


def extended(info: Mapping[str, Any], total: int) -> dict[str, Any]:
    """The splits of the dataset that `info` describes once it has `total` episodes, the new ones at its end.

    The new episodes are in `train` if that split ended where the dataset did and no other split went on beyond it; otherwise they
    are in no split, because nobody has said which one they are for. Every other split stays as it is.
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
    """The splits of the episodes `numbers` of the dataset that `info` describes, once they are numbered from 0.

    Episodes that `info` does not count are treated as in `extended`. A split without an episode is left out. All episodes are `train`
    if none is left, if one is no range of numbers, or if the episodes are in another order, so that a split is no range any more.
    """
    splits = extended(info, max(numbers, default=-1) + 1)
    ranges = {name: _range(text) for name, text in splits.items()}
    if not all(ranges.values()) or list(numbers) != sorted(numbers):
        return all_in_train(len(numbers))
    found = {}
    for name, edges in ranges.items():
        begin, end = (bisect.bisect_left(numbers, edge) for edge in edges or ())
        if begin < end:
            found[name] = f"{begin}:{end}"
    return found or all_in_train(len(numbers))


def _range(text: Any) -> tuple[int, int] | None:
    edges = re.fullmatch(r"([0-9]{1,18}):([0-9]{1,18})", str(text))
    return (int(edges[1]), int(edges[2])) if edges else None

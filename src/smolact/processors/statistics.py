"""The statistics of a checkpoint by feature, under all names that LeRobot gave them over time.

    observation.state.mean                   a processor's state file: FEATURE.STATISTIC
    so100.buffer.observation.state.mean      the base model's: DATASET.buffer.FEATURE.STATISTIC
    so100_buffer_observation_state.mean      among older weights (`legacy.py`), with dots written as underscores

A migration changed the underscores back to dots, also those of a feature's own name. Names are therefore compared with
the requested features as if dots and underscores were equal.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor

from smolact.errors import StatisticsError, did_you_mean

STATS_KEY_FLAG = "--policy.stats_key"
STATS_FLAG = "--policy.stats"

_OF_DATASET = re.compile(r"(?:(?P<dataset>.+?)[._])?buffer[._](?P<feature>(?:observation|action)(?:[._].+)?)")


def dataset_keys(state: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Return the datasets by which the statistics in a state file are keyed, sorted; empty if they are not."""
    return tuple(sorted({dataset for dataset, _, _, _ in _parsed(state) if dataset is not None}))


def select_statistics(
    state: Mapping[str, Tensor], key: str | None = None, features: Iterable[str] = ()
) -> dict[str, dict[str, Tensor]]:
    """Return the statistics in a state file by feature: those of one dataset, and those without a dataset.

    Args:
        state: `FEATURE.STATISTIC`, or `DATASET.buffer.FEATURE.STATISTIC`, to tensor.
        key: the dataset; None if there are not several.
        features: the requested features, whose names replace mangled ones.

    Raises:
        StatisticsError: one of several datasets must be selected, or `key` is none of them.
    """
    datasets = dataset_keys(state)
    if key is not None and key not in datasets:
        available = (
            f"It keeps them by dataset: {', '.join(datasets)}."
            if datasets
            else "It does not keep them by dataset."
        )
        raise StatisticsError(
            f"{STATS_KEY_FLAG}={key}: the checkpoint has no statistics of that name. {available}"
            + (did_you_mean(key, datasets) if datasets else f" Leave {STATS_KEY_FLAG} out.")
        )
    if key is None and len(datasets) > 1:
        raise StatisticsError(
            f"The checkpoint holds the statistics of {len(datasets)} datasets, and which of them has your robot's units "
            f"can't be known. Pick one with {STATS_KEY_FLAG}=KEY; the keys are: {', '.join(datasets)}. "
            "(Training takes the statistics of its dataset and needs no key.)"
        )
    chosen = datasets[0] if key is None and datasets else key
    return {**_of_dataset(state, None, features), **_of_dataset(state, chosen, features)}


def unselected_statistics(
    state: Mapping[str, Tensor], features: Iterable[str] = ()
) -> tuple[dict[str, dict[str, Tensor]], dict[str, tuple[str, ...]]]:
    """Return the statistics of a state file while none of its several datasets is selected.

    Returns:
        the statistics without a dataset, by feature; and for each other feature the datasets that have some.
    """
    plain = _of_dataset(state, None, features)
    own_name = {_canonical(feature): feature for feature in features}
    keyed: dict[str, set[str]] = defaultdict(set)
    for dataset, feature, _, _ in _parsed(state):
        if dataset is not None:
            keyed[own_name.get(_canonical(feature), feature)].add(dataset)
    return plain, {feature: tuple(sorted(keys)) for feature, keys in keyed.items() if feature not in plain}


def require_statistics(*pipelines: Any) -> None:
    """Raise unless every normalizer of these pipelines has its statistics; called before predictions in a robot's units.

    Raises:
        StatisticsError: some are missing, never set, or of one of several datasets; the message names the flags to set.
    """
    problems: dict[str, str] = {}
    for pipeline in pipelines:
        for step in getattr(pipeline, "steps", ()):
            if hasattr(step, "statistics_problems"):
                problems |= step.statistics_problems()
    if len(problems) == 1:
        raise StatisticsError(f"{next(iter(problems.values()))} {_IN_TRAINING}")
    if problems:
        lines = "".join(f"\n  {problem}" for problem in problems.values())
        raise StatisticsError(
            f"The policy needs more statistics to predict in a robot's units:{lines}\n{_IN_TRAINING}"
        )


def fill_statistics(
    pipelines: Iterable[Any], statistics: Mapping[str, Mapping[str, Any]], source: str
) -> list[str]:
    """Give normalizers the statistics that they lack; existing ones are kept.

    Args:
        statistics: feature (under the policy's name) to statistic to array.
        source: their source, for the message.

    Returns:
        the features that were filled.

    Raises:
        StatisticsError: `statistics` lack them, too, or have them in another shape.
    """
    filled: list[str] = []
    for pipeline in pipelines:
        for step in getattr(pipeline, "steps", ()):
            if hasattr(step, "fill"):
                filled += step.fill(statistics, source)
    return list(dict.fromkeys(filled))


_IN_TRAINING = "(Training takes the statistics of its dataset.)"


def _of_dataset(
    state: Mapping[str, Tensor], chosen: str | None, features: Iterable[str]
) -> dict[str, dict[str, Tensor]]:
    own_name = {_canonical(feature): feature for feature in features}
    selected: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for dataset, feature, statistic, tensor in _parsed(state):
        if dataset == chosen:
            selected[own_name.get(_canonical(feature), feature)][statistic] = tensor
    return dict(selected)


def rename_statistics(statistics: Mapping[str, Any], rename_map: Mapping[str, str]) -> dict[str, Any]:
    """Return statistics with their features renamed by `rename_map`."""
    return {rename_map.get(feature, feature): values for feature, values in statistics.items()}


def _parsed(state: Mapping[str, Tensor]) -> Iterator[tuple[str | None, str, str, Tensor]]:
    for name, tensor in state.items():
        feature, _, statistic = name.rpartition(".")
        match = _OF_DATASET.fullmatch(feature)
        yield (
            (match["dataset"], match["feature"], statistic, tensor)
            if match
            else (None, feature, statistic, tensor)
        )


def _canonical(feature: str) -> str:
    return feature.replace("_", ".")

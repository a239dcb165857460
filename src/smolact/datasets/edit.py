"""Plans of dataset edits: which episodes of which datasets, with which changes. `rewrite.py` executes them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from smolact.datasets.comparison import differences, order_of_names
from smolact.datasets.format import DEFAULT_FEATURES, Feature, flat_names
from smolact.datasets.metadata import LeRobotDatasetMetadata
from smolact.datasets.sources import ReorderedSource, Source
from smolact.errors import ConfigError, FeatureError, did_you_mean


@dataclass(frozen=True)
class EditPlan:
    """The plan of a new dataset.

    Attributes:
        episodes: the new episodes in order, as (source index, episode number in that source).
        renamed: task to new task.
        removed: features to leave out.
        cameras: camera to its new dtype, `image` or `video`.
        robot_type: the new robot type; the first source's when None.
        recompute: compute all statistics from the frames instead of copying the episodes' from the metadata.
    """

    sources: tuple[Source, ...]
    episodes: tuple[tuple[int, int], ...]
    renamed: Mapping[str, str] = field(default_factory=dict)
    removed: frozenset[str] = frozenset()
    cameras: Mapping[str, str] = field(default_factory=dict)
    robot_type: str | None = None
    recompute: bool = False
    version: str = "v3.0"

    @property
    def keeps_all_episodes(self) -> bool:
        """Whether every episode of a single dataset is kept in its position."""
        return len(self.sources) == 1 and self.episodes == _all(0, self.sources[0])

    def features(self) -> dict[str, Feature]:
        """The features of the new dataset."""
        result: dict[str, Feature] = {}
        for name, feature in self.sources[0].meta.features.items():
            if name in self.removed:
                continue
            info, extra = dict(feature.info), dict(feature.extra)
            for source in self.sources[1:]:  # keep only the entries on which all sources agree
                other = source.meta.features[name]
                info = {key: value for key, value in info.items() if other.info.get(key) == value}
                extra = {key: value for key, value in extra.items() if other.extra.get(key) == value}
            dtype = self.cameras.get(name, feature.dtype)
            named = (source.meta.features[name].names for source in self.sources)
            names = feature.names if feature.is_image else next(filter(flat_names, named), feature.names)
            result[name] = dataclasses.replace(
                feature, dtype=dtype, names=names, info=info if dtype == feature.dtype else {}, extra=extra
            )
        return result


def all_episodes(source: Source) -> EditPlan:
    """All episodes of a dataset; rewriting merges many small files into few."""
    return EditPlan((source,), _all(0, source))


def select_episodes(source: Source, episodes: Sequence[int]) -> EditPlan:
    """Some episodes of a dataset, in its order.

    Raises:
        ConfigError: an episode does not exist, or none is left.
    """
    check_episodes(source.meta, episodes)
    if not episodes:
        raise ConfigError(
            f"Nothing would be left of {source.meta.root}. A dataset has one episode at least: choose otherwise."
        )
    return EditPlan((source,), tuple((0, number) for number in sorted(set(episodes))))


def delete_episodes(source: Source, episodes: Sequence[int]) -> EditPlan:
    """A dataset without some of its episodes.

    Raises:
        ConfigError: an episode does not exist, or none is left.
    """
    check_episodes(source.meta, episodes)
    return select_episodes(
        source, [number for number in range(source.meta.total_episodes) if number not in set(episodes)]
    )


def split(source: Source, parts: Mapping[str, float | Sequence[int]]) -> dict[str, EditPlan]:
    """Split one dataset into several: each part is a fraction of the episodes, in order, or a list of them.

    Raises:
        ConfigError: the fractions exceed 1 in total, an episode does not exist or is in two parts, or a part is empty.
    """
    total, begin, fraction_sum = source.meta.total_episodes, 0, 0.0
    chosen: dict[str, list[int]] = {}
    for name, part in parts.items():
        if isinstance(part, (int, float)):
            fraction_sum += part
            if not 0 < part <= 1 or fraction_sum > 1 + 1e-9:
                raise ConfigError(
                    f"The fraction {part} of '{name}': each must be above 0, all together at most 1."
                )
            end = round(fraction_sum * total)
            chosen[name], begin = list(range(begin, end)), end
        else:
            chosen[name] = list(part)
        if not chosen[name]:
            raise ConfigError(f"'{name}' would have no episode of the {total} of {source.meta.root}.")
    assigned = [number for numbers in chosen.values() for number in set(numbers)]
    duplicates = sorted({number for number in assigned if assigned.count(number) > 1})
    if duplicates:
        raise ConfigError(f"Episode {duplicates[0]} is in two parts. Put each episode into one.")
    return {name: select_episodes(source, numbers) for name, numbers in chosen.items()}


def merge(
    sources: Sequence[Source], *, reorder_names: bool = False, robot_type: str | None = None
) -> EditPlan:
    """Concatenate several datasets; tasks of the same text become one.

    Args:
        reorder_names: reorder vectors that have the first dataset's dimension names in another order.
        robot_type: the robot type of the new dataset; required where the sources' robot types differ.

    Raises:
        ConfigError: there are fewer than two datasets, or their frame rates or robot types differ.
        FeatureError: their features differ in type, size, or dimension names; all differences are listed.
    """
    if len(sources) < 2:
        raise ConfigError("Merging needs two datasets or more.")
    first = sources[0].meta
    merged = [sources[0]]
    for source in sources[1:]:
        meta = source.meta
        if meta.fps != first.fps:
            raise ConfigError(
                f"{meta.root} has {meta.fps:g} frames a second and {first.root} {first.fps:g}: one dataset has one rate."
            )
        orders = {
            name: order
            for name in first.features.keys() & meta.features.keys()
            if (order := order_of_names(meta.features[name], first.features[name])) is not None
        }
        merged.append(ReorderedSource(source, orders, first.features) if reorder_names and orders else source)
        _check_mergeable(first, merged[-1].meta, "" if reorder_names else ", ".join(sorted(orders)))
    robots = list(dict.fromkeys(source.meta.robot_type for source in sources if source.meta.robot_type))
    if robot_type is None and len(robots) > 1:
        raise ConfigError(
            f"The datasets are of different robots: {', '.join(robots)}. Merge what one robot did; if it is one robot under several "
            f"names, say which the new dataset has: --robot_type={robots[0]}"
        )
    pairs = tuple(pair for number, source in enumerate(merged) for pair in _all(number, source))
    return EditPlan(tuple(merged), pairs, robot_type=robot_type or next(iter(robots), None))


def _check_mergeable(first: LeRobotDatasetMetadata, meta: LeRobotDatasetMetadata, reorderable: str) -> None:
    """Raise a `FeatureError` unless both datasets have the same features; `reorderable` names those in another order."""
    sides = f"in {meta.root}", f"in {first.root}"
    wrong = [
        f"'{name}' is in {first.root if name in first.features else meta.root} only"
        for name in sorted(first.features.keys() ^ meta.features.keys())
    ]
    for name in first.features.keys() & meta.features.keys():
        wrong += differences(name, meta.features[name], first.features[name], sides)
    if not wrong:
        return
    remedy = "Leave a feature out (smolact dataset remove-feature), or convert one of them (smolact dataset convert)."
    if reorderable:
        remedy = f"The names of {reorderable} are the same in another order: --reorder_names=true puts the numbers into the first one's. {remedy}"
    elif any(" has the names " in line for line in wrong):
        remedy = (
            "Merge datasets of one robot. Only if both lists mean the same joints, in the same order: write one of them into both "
            f"meta/info.json. {remedy}"
        )
    listed = "".join(f"\n  {line}" for line in sorted(wrong))
    raise FeatureError(f"{meta.root} and {first.root} differ in{listed}\n{remedy}")


def rename_task(source: Source, old: str, new: str) -> EditPlan:
    """Rename a task; renaming to an existing text merges both.

    Raises:
        ConfigError: the task does not exist, or the new text is empty.
    """
    tasks = list(source.meta.tasks.values())
    if old not in tasks:
        raise ConfigError(
            f"{source.meta.root} has no task {old!r}.{did_you_mean(old, tasks)} It has: {tasks}."
        )
    if not new.strip():
        raise ConfigError("The new task is empty: say what the demonstrations show.")
    return dataclasses.replace(all_episodes(source), renamed={old: new})


def remove_features(source: Source, names: Sequence[str]) -> EditPlan:
    """A dataset without some of its features.

    Raises:
        ConfigError: the feature does not exist, is required in every dataset, or none would be left.
    """
    own = [name for name in source.meta.features if name not in DEFAULT_FEATURES]
    for name in names:
        if name not in own:
            raise ConfigError(
                f"'{name}' is no feature of {source.meta.root} that can be removed.{did_you_mean(name, own)} "
                f"There are: {', '.join(own)}."
            )
    if set(own) == set(names):
        raise ConfigError("No feature would be left. Remove fewer.")
    return dataclasses.replace(all_episodes(source), removed=frozenset(names))


def check_episodes(meta: LeRobotDatasetMetadata, episodes: Sequence[int]) -> None:
    """Raise a `ConfigError` unless all `episodes` exist."""
    outside = [number for number in episodes if not 0 <= number < meta.total_episodes]
    if outside:
        raise ConfigError(
            f"There is no episode {outside[0]}: {meta.root} has {meta.total_episodes}, numbered from 0."
        )


def _all(number: int, source: Source) -> tuple[tuple[int, int], ...]:
    return tuple((number, episode) for episode in range(source.meta.total_episodes))

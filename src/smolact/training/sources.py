"""The datasets of a run: one, or several mixed by weight, with the held-out episodes of each."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch.utils.data import Dataset

from smolact.datasets.comparison import differences, order_of_names
from smolact.datasets.format import Feature
from smolact.datasets.metadata import LeRobotDatasetMetadata
from smolact.datasets.reader import LeRobotDataset
from smolact.datasets.stats import aggregate
from smolact.datasets.unreadable import Unreadable
from smolact.errors import ConfigError, DatasetError, FeatureError, did_you_mean
from smolact.hub import find_folder
from smolact.policies.configuration import PolicyConfig
from smolact.processors.steps import RenameObservationsProcessorStep
from smolact.training.corrections import check_marks, weighted_corrections
from smolact.training.sections import DatasetSection
from smolact.training.stream import IndexOrder, Mixture, ShuffledEpochs
from smolact.types import (
    ACTION,
    ACTION_IS_PAD,
    INTERVENTION,
    STATE,
    TASK,
    VISION_TOKENS,
    Batch,
    PolicyFeature,
    Statistics,
    is_image_key,
)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Source:
    """One dataset of a run."""

    section: DatasetSection
    """The settings, as if this were the only dataset."""
    meta: LeRobotDatasetMetadata
    weight: float
    episodes: list[int]
    held_out: list[int]
    rename_map: Mapping[str, str]
    """The entries of the run's map for this dataset."""

    def features(self) -> tuple[dict[str, PolicyFeature], dict[str, PolicyFeature]]:
        """Return the dataset's features, (inputs, outputs), under the policy's names."""
        return renamed_features(self.meta, self.rename_map)

    def open(self, policy: PolicyConfig, *, held_out: bool = False) -> LeRobotDataset:
        """Open the training or held-out episodes, as samples with the policy's chunks."""
        return LeRobotDataset(
            self.section.name,
            root=self.section.root,
            episodes=self.held_out if held_out else self.episodes,
            delta_timestamps=chunk_timestamps(policy, self.meta.fps),
            revision=self.section.revision,
            return_uint8=True,
            cameras=self.cameras(policy),
        )

    def cameras(self, policy: PolicyConfig) -> list[str]:
        """Return the cameras that the policy reads, by their names in the dataset."""
        keys = self.meta.color_keys
        return [key for key in keys if self.rename_map.get(key, key) in policy.input_features]


def chunk_timestamps(policy: PolicyConfig, fps: float) -> dict[str, list[float]]:
    """Return the `delta_timestamps`, in seconds, for the policy's action chunks."""
    return {ACTION: [index / fps for index in policy.action_delta_indices]}


def find_sources(section: DatasetSection, rename_map: Mapping[str, str]) -> list[Source]:
    """Find the datasets in the settings and read their metadata.

    Raises:
        NotFoundError, HubError, DatasetError: a dataset is missing or corrupt.
        ConfigError: the flags select no episode, or a missing one.
        FeatureError: the datasets of a mixture differ in state, action or frame rate.
    """
    if not section.mix:
        source = _source(section, 1.0, rename_map)
        check_marks(section.corrections_weight, {section.name: source.meta.features})
        return [source]
    sources = []
    for name, weight in section.mix.items():
        single = replace(section, repo_id=name, mix={})
        source = _source(single, weight, rename_map)
        used_map = {key: name for key, name in rename_map.items() if key in source.meta.features}
        chained = [name for name in used_map.values() if name in rename_map]
        if chained:
            raise ConfigError(
                f"--rename_map leads to '{chained[0]}' and away from it, which a mixture of datasets can't follow. Choose new "
                "names for the policy."
            )
        sources.append(replace(source, rename_map=used_map))
    unknown = [key for key in rename_map if not any(key in source.meta.features for source in sources)]
    if unknown:
        raise ConfigError(
            f"--rename_map leads from '{unknown[0]}', which none of the datasets has; {sources[0].section.name} has "
            f"{', '.join(sources[0].meta.features)}.{did_you_mean(unknown[0], sources[0].meta.features)}"
        )
    _check_mixture(sources)
    check_marks(section.corrections_weight, {source.section.name: source.meta.features for source in sources})
    return sources


def _source(section: DatasetSection, weight: float, rename_map: Mapping[str, str]) -> Source:
    folder = find_folder(
        section.name, "dataset", root=section.root, patterns=["meta/**"], revision=section.revision
    )
    meta = LeRobotDatasetMetadata(folder)
    episodes, held_out = chosen_episodes(section, meta), list[int]()
    if section.eval_split:
        episodes, held_out = split_episodes(episodes, meta, section.eval_split)
    return Source(section, meta, weight, episodes, held_out, rename_map)


def chosen_episodes(section: DatasetSection, meta: LeRobotDatasetMetadata) -> list[int]:
    """Return the episodes that the flags select.

    Raises:
        ConfigError: they select none, or a missing one.
    """
    candidates = range(meta.total_episodes) if section.episodes is None else section.episodes
    if any(number >= meta.total_episodes for number in candidates):
        raise ConfigError(
            f"--dataset.episodes names {max(candidates)}: the dataset has the episodes 0 to {meta.total_episodes - 1}."
        )
    left_out = set(section.exclude_episodes or ())
    if left_out and max(left_out) >= meta.total_episodes:
        raise ConfigError(
            f"--dataset.exclude_episodes names {max(left_out)}: the dataset has the episodes 0 to {meta.total_episodes - 1}."
        )
    selected = sorted(number for number in candidates if number not in left_out)
    if left_out and not selected:
        raise ConfigError("--dataset.exclude_episodes leaves no episode. Leave fewer out.")
    return selected


def split_episodes(
    episodes: Sequence[int], meta: LeRobotDatasetMetadata, share: float
) -> tuple[list[int], list[int]]:
    """Split episodes into training and held-out ones: the last `share` of each task, rounded up, but never all.

    Raises:
        ConfigError: every task has a single episode.
    """
    by_task: dict[tuple[str, ...], list[int]] = {}
    for episode in episodes:
        by_task.setdefault(tuple(meta.episodes[episode].tasks[:1]), []).append(episode)
    held_out: set[int] = set()
    for members in by_task.values():
        count = min(math.ceil(len(members) * share), len(members) - 1)
        held_out.update(members[len(members) - count :])
    if not held_out:
        raise ConfigError(
            f"--dataset.eval_split={share}: every task has a single episode, so none can be held out. Leave --dataset.eval_split and "
            "--eval_steps out."
        )
    return [episode for episode in episodes if episode not in held_out], sorted(held_out)


def renamed_features(
    meta: LeRobotDatasetMetadata, rename_map: Mapping[str, str]
) -> tuple[dict[str, PolicyFeature], dict[str, PolicyFeature]]:
    """Return a dataset's features, (inputs, outputs), under the policy's names."""
    inputs, outputs = meta.policy_features()
    return {rename_map.get(key, key): feature for key, feature in inputs.items()}, outputs


def shared_features(sources: Sequence[Source]) -> tuple[dict[str, PolicyFeature], dict[str, PolicyFeature]]:
    """Return the features that all datasets have, (inputs, outputs), with the sizes of the first."""
    inputs, outputs = sources[0].features()
    others = [source.features()[0] for source in sources[1:]]
    return {key: feature for key, feature in inputs.items() if all(key in other for other in others)}, outputs


def training_statistics(sources: Sequence[Source], *, imagenet: bool) -> Statistics:
    """Return the normalization statistics; with `imagenet`, images have ImageNet's mean and standard deviation.

    A single dataset has its own statistics, under its names. Several, under the policy's names: mean and standard deviation
    are those of the mixture, minimum and maximum those of all, quantiles bounds (`aggregate`).
    """
    if len(sources) == 1:
        return _with_imagenet(sources[0].meta, {}, imagenet=imagenet)
    parts = []
    for source in sources:
        statistics = _with_imagenet(source.meta, source.rename_map, imagenet=imagenet)
        weight = np.array([source.weight])
        parts.append({key: {**values, "count": weight} for key, values in statistics.items()})
    mixed = aggregate(parts)
    frames = sum(source.meta.total_frames for source in sources)
    return {key: {**values, "count": np.array([frames])} for key, values in mixed.items()}


def _with_imagenet(meta: LeRobotDatasetMetadata, names: Mapping[str, str], *, imagenet: bool) -> Statistics:
    statistics: Statistics = {names.get(key, key): dict(values) for key, values in meta.stats.items()}
    for key in meta.color_keys if imagenet else ():
        name = names.get(key, key)
        mean, std = (np.array(values).reshape(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
        statistics[name] = {**statistics.get(name, {}), "mean": mean, "std": std}
    return statistics


class MixedDataset(Dataset[Batch]):
    """Several datasets as one, with their common features under the policy's names."""

    def __init__(self, datasets: Sequence[LeRobotDataset], sources: Sequence[Source]) -> None:
        self.datasets = list(datasets)
        self.starts = np.cumsum([0, *map(len, datasets)])
        self._renames = [RenameObservationsProcessorStep(dict(source.rename_map)) for source in sources]
        self._shared = {TASK} | set.intersection(*(_sample_keys(source) for source in sources))

    @property
    def decodes(self) -> bool:
        """Whether pictures are decoded."""
        return any(dataset.decodes for dataset in self.datasets)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Batch]:
        numbers = np.asarray(indices)
        owners = np.searchsorted(self.starts, numbers, side="right") - 1
        samples: list[Batch] = [{} for _ in indices]
        for owner in np.unique(owners):
            selected = np.flatnonzero(owners == owner)
            owned = self.datasets[owner].__getitems__((numbers[selected] - self.starts[owner]).tolist())
            for position, sample in zip(selected, owned, strict=True):
                samples[position] = self._renames[owner](sample)
        return [{key: value for key, value in sample.items() if key in self._shared} for sample in samples]

    def unreadable(self, index: int, error: DatasetError) -> Unreadable:
        """Describe the sample `index`, which raised `error`, by its position in its own dataset."""
        owner = int(np.searchsorted(self.starts, index, side="right")) - 1
        return self.datasets[owner].unreadable(index - int(self.starts[owner]), error)


def open_sources(
    sources: Sequence[Source], datasets: Sequence[LeRobotDataset]
) -> LeRobotDataset | MixedDataset:
    """Return a single dataset unchanged, several as a `MixedDataset`."""
    return datasets[0] if len(datasets) == 1 else MixedDataset(datasets, sources)


def order_of(
    sources: Sequence[Source], datasets: Sequence[LeRobotDataset], seed: int, drop_last: int = 0
) -> IndexOrder:
    """Return the order in which a run reads the frames of its datasets."""
    orders: list[IndexOrder] = []
    start = 0
    for index, (source, dataset) in enumerate(zip(sources, datasets, strict=True)):
        frames = dataset.frames_before_end(drop_last)
        purpose = "epoch" if index == 0 else f"epoch of dataset {index}"
        weight = source.section.corrections_weight
        if weight is None or INTERVENTION not in dataset.features:
            orders.append(ShuffledEpochs(start + frames, seed, purpose))
        else:
            is_correction = dataset.windows(INTERVENTION, 1, frames).reshape(len(frames)).astype(bool)
            orders.append(weighted_corrections(start + frames, is_correction, weight, seed, purpose))
        start += len(dataset)
    return orders[0] if len(orders) == 1 else Mixture(orders, [source.weight for source in sources], seed)


def _sample_keys(source: Source) -> set[str]:
    read = [key for key in source.meta.features if key not in source.meta.depth_keys]
    names = {source.rename_map.get(key, key) for key in read}
    return names | {name + VISION_TOKENS for name in names if is_image_key(name)} | {ACTION_IS_PAD}


def _check_mixture(sources: Sequence[Source]) -> None:
    """Raise a `FeatureError` unless all datasets have the same frame rate, feature sizes and names."""
    first = sources[0]
    for other in sources[1:]:
        shared = (_sample_keys(first) & _sample_keys(other)) | {STATE, ACTION}
        left, right = (_named_features(source, shared) for source in (first, other))
        names = first.section.name, other.section.name
        rows = []
        if first.meta.fps != other.meta.fps:
            rows.append(
                f"  {first.meta.fps:g} frames a second in {names[0]}, {other.meta.fps:g} in {names[1]}"
            )
        for key in dict.fromkeys([*left, *right]):
            if key in left and key in right:
                sides = f"in {names[0]}", f"in {names[1]}"
                lines = differences(key, left[key], right[key], sides, dtype=False)
                rows += [f"  {line}" for line in lines]
            else:
                rows.append(f"  '{key}' is in {names[key not in left]} only")
        if rows:
            listed = "\n".join(rows)
            permuted = any(
                order_of_names(right[key], left[key]) is not None for key in left.keys() & right.keys()
            )
            remedy = (
                f" The same names in another order are put in order by: smolact dataset merge --datasets='[{names[0]}, {names[1]}]' "
                "--reorder_names=true --output=FOLDER"
            )
            raise FeatureError(
                f"--dataset.mix: {names[0]} and {names[1]} can't be mixed, since they differ:\n{listed}\n"
                f"Mix datasets of one robot, or rename features with --rename_map.{remedy * permuted}"
            )


def _named_features(source: Source, keys: Collection[str]) -> dict[str, Feature]:
    """Return the features among `keys`, and always state and action, under the policy's names."""
    renamed = {
        source.rename_map.get(key, key): (key, feature) for key, feature in source.meta.features.items()
    }
    return {
        name: feature for name, (key, feature) in renamed.items() if name in keys or key in (STATE, ACTION)
    }

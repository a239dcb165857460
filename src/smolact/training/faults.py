"""What is wrong with a dataset's values stops a run before its first step; what is merely odd about them is told."""

from __future__ import annotations

import logging

import numpy as np

from smolact.datasets.inspection import errors_of_training
from smolact.errors import DatasetError
from smolact.policies.configuration import PolicyConfig
from smolact.training.sections import DatasetSection
from smolact.training.sources import Source
from smolact.types import FeatureType, NormalizationMode, is_image_key

logger = logging.getLogger(__name__)

MAX_SHOWN = 5


def check_faults(policy: PolicyConfig, source: Source, section: DatasetSection) -> None:
    """Look at the tables, metadata and statistics of a dataset as `smolact dataset check` does, and at no picture.

    Args:
        policy: the configuration of the policy that is to be trained: only what it uses is looked at.
        source: its metadata and the files of its episodes are on the disk.
        section: the run's settings: whether errors are only told.

    Raises:
        DatasetError: there is something that the check calls an error.
    """
    used = used_features(policy, source)
    errors = errors_of_training(source.meta, {*source.episodes, *source.held_out}, used)
    if errors:
        shown = "\n".join(f"  {fault.place}: {fault.message}" for fault in errors[:MAX_SHOWN])
        more = f"\n  and {len(errors) - MAX_SHOWN} more" if len(errors) > MAX_SHOWN else ""
        found = (
            f"The dataset {source.section.name} has {len(errors)} fault{'s' * (len(errors) > 1)}:\n{shown}{more}\n"
            f"All of them: smolact dataset check --dataset.root={source.meta.root}"
        )
        if not section.allow_faults:
            apart = "" if section.mix else ", leave their episodes out (--dataset.exclude_episodes)"
            raise DatasetError(
                f"{found}\nMend them{apart}, or train all the same: --dataset.allow_faults=true"
            )
        logger.warning("%s\nTraining goes on, as --dataset.allow_faults=true asks.", found)
    note_constant(source, used)


def note_constant(source: Source, features: set[str]) -> None:
    """Say which numbers of states and actions never change: that is no fault, and a policy can't learn to move them."""
    for key in sorted(features):
        stats = source.meta.stats.get(key, {})
        if is_image_key(key) or not {"min", "max"} <= stats.keys():
            continue
        still = np.flatnonzero(np.asarray(stats["min"]).ravel() == np.asarray(stats["max"]).ravel())
        if len(still):
            logger.warning(
                "%s: of '%s' the numbers %s never change.",
                source.section.name,
                key,
                ", ".join(map(str, still.tolist())),
            )


def used_features(policy: PolicyConfig, source: Source) -> set[str]:
    """The dataset's features whose values the policy takes; a camera only where it is normalized with statistics."""
    modes = {
        FeatureType(kind): NormalizationMode(mode)
        for kind, mode in getattr(policy, "normalization_mapping", {}).items()
    }
    wanted = {**policy.input_features, **policy.output_features}
    found = set()
    for key in source.meta.features:
        feature = wanted.get(source.rename_map.get(key, key))
        if feature is None:
            continue
        mode = modes.get(feature.type, NormalizationMode.IDENTITY)
        if feature.type is not FeatureType.VISUAL or mode is not NormalizationMode.IDENTITY:
            found.add(key)
    return found

"""Faults in a dataset, which stop a run before its first step, and oddities, which are only logged."""

from __future__ import annotations

import logging

import numpy as np

from smolact.datasets.inspection import training_errors
from smolact.errors import DatasetError
from smolact.policies.configuration import PolicyConfig
from smolact.training.sections import DatasetSection
from smolact.training.sources import Source
from smolact.types import FeatureType, NormalizationMode, is_image_key

logger = logging.getLogger(__name__)

MAX_SHOWN = 5


def check_faults(policy: PolicyConfig, source: Source, section: DatasetSection) -> None:
    """Raise a `DatasetError` if `smolact dataset check`, without the pictures, finds an error in what the policy uses."""
    used = used_features(policy, source)
    errors = training_errors(source.meta, {*source.episodes, *source.held_out}, used)
    if errors:
        shown = "\n".join(f"  {fault.location}: {fault.message}" for fault in errors[:MAX_SHOWN])
        more = f"\n  and {len(errors) - MAX_SHOWN} more" if len(errors) > MAX_SHOWN else ""
        message = (
            f"The dataset {source.section.name} has {len(errors)} fault{'s' * (len(errors) > 1)}:\n{shown}{more}\n"
            f"All of them: smolact dataset check --dataset.root={source.meta.root}"
        )
        if not section.allow_faults:
            option = "" if section.mix else ", leave their episodes out (--dataset.exclude_episodes)"
            raise DatasetError(
                f"{message}\nMend them{option}, or train all the same: --dataset.allow_faults=true"
            )
        logger.warning("%s\nTraining goes on, as --dataset.allow_faults=true asks.", message)
    note_constant(source, used)


def note_constant(source: Source, features: set[str]) -> None:
    """Log the state and action dimensions that never change: no fault, but a policy can't learn to move them."""
    for key in sorted(features):
        stats = source.meta.stats.get(key, {})
        if is_image_key(key) or not {"min", "max"} <= stats.keys():
            continue
        constant = np.flatnonzero(np.asarray(stats["min"]).ravel() == np.asarray(stats["max"]).ravel())
        if len(constant):
            logger.warning(
                "%s: of '%s' the numbers %s never change.",
                source.section.name,
                key,
                ", ".join(map(str, constant.tolist())),
            )


def used_features(policy: PolicyConfig, source: Source) -> set[str]:
    """Return the dataset's features whose values the policy uses; a camera only if its normalization uses statistics."""
    modes = {
        FeatureType(kind): NormalizationMode(mode) for kind, mode in policy.normalization_mapping.items()
    }
    used = set()
    for key in source.meta.features:
        feature = policy.features.get(source.rename_map.get(key, key))
        if feature is None:
            continue
        mode = modes.get(feature.type, NormalizationMode.IDENTITY)
        if feature.type is not FeatureType.VISUAL or mode is not NormalizationMode.IDENTITY:
            used.add(key)
    return used

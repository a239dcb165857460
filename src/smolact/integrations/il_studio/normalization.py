"""What IL-Studio normalizes with, kept as JSON beside a checkpoint, and turned into smolact's statistics.

IL-Studio keeps its own statistics in a pickle, which smolact does not open; so they are taken from the datasets themselves while
they train.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from smolact import durable
from smolact.errors import StatisticsError
from smolact.files import read_json_object
from smolact.types import ACTION, STATE, NormalizationMode, Statistics

logger = logging.getLogger(__name__)

STATISTICS_FILE = "smolact_statistics.json"
_MODES = {
    "zscore": NormalizationMode.MEAN_STD,
    "minmax": NormalizationMode.MIN_MAX,
    "percentile": NormalizationMode.QUANTILES,
    "identity": NormalizationMode.IDENTITY,
}
_PAIRS = {
    NormalizationMode.MEAN_STD: (("mean", 0.0), ("std", 1.0)),
    NormalizationMode.MIN_MAX: (("min", -1.0), ("max", 1.0)),
    NormalizationMode.QUANTILES: (("q01", -1.0), ("q99", 1.0)),
    NormalizationMode.IDENTITY: (),
}
"""What each mode reads, and the values that leave a number as it is."""


def normalizers_of(loader: Any) -> dict[str, Any]:
    """How the dataset behind a loader normalizes, as JSON can hold it; empty if it does not say (or if it is several)."""
    dataset = getattr(loader, "dataset", None)
    while dataset is not None and "action_normalizer" not in vars(dataset):
        dataset = vars(dataset).get("dataset")
    if dataset is None:
        return {}
    named = {"action": dataset.action_normalizer, "state": dataset.state_normalizer}
    return {what: _described(normalizer, what) for what, normalizer in named.items()}


def _described(normalizer: Any, what: str) -> dict[str, Any]:
    if normalizer is None:  # the dataset leaves these numbers as they are
        return {"mode": "identity"}
    kept = getattr(normalizer, "all_stats", {}).get(what, {})
    mask = getattr(normalizer, "mask_spec", None)
    return {
        "mode": str(normalizer),
        "mask": None if mask is None else np.asarray(mask).tolist(),
        "min_std": float(getattr(normalizer, "min_std", 0.0)),
        "statistics": {name: np.asarray(values, dtype=np.float64).tolist() for name, values in kept.items()},
    }


def save_normalizers(loader: Any, folder: Path) -> None:
    """Write what the dataset behind a loader normalizes with into a checkpoint's folder."""
    found = normalizers_of(loader)
    if found:
        durable.write_json(folder / STATISTICS_FILE, found)
    else:
        logger.info(
            "The datasets do not say how they normalize (several are mixed), so %s has no %s.",
            folder,
            STATISTICS_FILE,
        )


def read_normalizers(folder: Path) -> tuple[dict[str, NormalizationMode], Statistics]:
    """Smolact's normalization mapping and statistics for a checkpoint that IL-Studio trained.

    Raises:
        StatisticsError: the checkpoint has none.
        CheckpointError: the file is damaged.
    """
    path = next(
        (at / STATISTICS_FILE for at in (folder, folder.parent) if (at / STATISTICS_FILE).is_file()), None
    )
    if path is None:
        raise StatisticsError(
            f"{folder} has no {STATISTICS_FILE}, which smolact's trainer writes (trainer_class: SmolVLATrainer, one dataset). "
            "Train a step with it: --policy.is_pretrained=true --policy.model_name_or_path=CHECKPOINT."
        )
    kept = read_json_object(path, "Train a step, which writes it again.")
    modes, statistics = {"VISUAL": NormalizationMode.IDENTITY}, {}
    for what, feature in (("STATE", STATE), ("ACTION", ACTION)):
        if what.lower() not in kept:
            raise StatisticsError(
                f"{path} does not say how '{what.lower()}' is normalized. Train a step, which writes it again."
            )
        modes[what], values = _translated(kept[what.lower()], path)
        if values:
            statistics[feature] = values
    return modes, statistics


def _translated(
    kept: Mapping[str, Any], path: Path
) -> tuple[NormalizationMode, dict[str, np.ndarray[Any, Any]]]:
    mode = _MODES.get(str(kept.get("mode")))
    if mode is None:
        raise StatisticsError(
            f"{path}: '{kept.get('mode')}' is no normalization that smolact has ({', '.join(_MODES)})."
        )
    if mode is NormalizationMode.QUANTILES:
        logger.warning(
            "IL-Studio's percentile normalization cuts off what is out of range; smolact's does not."
        )
    pairs = _PAIRS[mode]
    if any(name not in kept.get("statistics", {}) for name, _ in pairs):
        raise StatisticsError(
            f"{path} lacks one of {', '.join(name for name, _ in pairs)}. Train a step, which writes it again."
        )
    values = {name: np.asarray(kept["statistics"][name], dtype=np.float64) for name, _ in pairs}
    if "std" in values:
        values["std"] = np.maximum(values["std"], kept.get("min_std", 0.0))
    for name, neutral in pairs:
        values[name] = np.where(_is_normalized(kept.get("mask"), len(values[name])), values[name], neutral)
    return mode, values


def _is_normalized(mask: Any, width: int) -> np.ndarray[Any, Any]:
    """IL-Studio's mask: which values are normalized, or the numbers of those that are not."""
    if mask is None:
        return np.ones(width, dtype=bool)
    given = np.asarray(mask)
    if given.dtype == bool:
        return given
    found = np.ones(width, dtype=bool)
    found[given.astype(int)] = False
    return found

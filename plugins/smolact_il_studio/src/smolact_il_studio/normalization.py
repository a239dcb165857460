"""IL-Studio's normalization statistics, saved as JSON in a checkpoint and converted to smolact's statistics.

IL-Studio saves its statistics in a pickle, which smolact does not load; so they are read from the datasets during training.
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
"""The statistics that each mode needs, and the values that make it the identity."""


def normalizers_of(loader: Any) -> dict[str, Any]:
    """Return the normalization of a loader's dataset for JSON; empty if unknown, or for several datasets."""
    dataset = getattr(loader, "dataset", None)
    while dataset is not None and "action_normalizer" not in vars(dataset):
        dataset = vars(dataset).get("dataset")
    if dataset is None:
        return {}
    normalizers = {"action": dataset.action_normalizer, "state": dataset.state_normalizer}
    return {kind: _describe(normalizer, kind) for kind, normalizer in normalizers.items()}


def _describe(normalizer: Any, kind: str) -> dict[str, Any]:
    if normalizer is None:  # these values are not normalized
        return {"mode": "identity"}
    stats = getattr(normalizer, "all_stats", {}).get(kind, {})
    mask = getattr(normalizer, "mask_spec", None)
    return {
        "mode": str(normalizer),
        "mask": None if mask is None else np.asarray(mask).tolist(),
        "min_std": float(getattr(normalizer, "min_std", 0.0)),
        "statistics": {name: np.asarray(values, dtype=np.float64).tolist() for name, values in stats.items()},
    }


def save_normalizers(loader: Any, folder: Path) -> None:
    """Write the normalization of a loader's dataset into a checkpoint's folder."""
    normalizers = normalizers_of(loader)
    if normalizers:
        durable.write_json(folder / STATISTICS_FILE, normalizers)
    else:
        logger.info(
            "The datasets do not say how they normalize (several are mixed), so %s has no %s.",
            folder,
            STATISTICS_FILE,
        )


def read_normalizers(folder: Path) -> tuple[dict[str, NormalizationMode], Statistics]:
    """Read smolact's normalization mapping and statistics for a checkpoint that IL-Studio trained.

    Raises:
        StatisticsError: the checkpoint has none.
        CheckpointError: the file is corrupt.
    """
    path = next(
        (at / STATISTICS_FILE for at in (folder, folder.parent) if (at / STATISTICS_FILE).is_file()), None
    )
    if path is None:
        raise StatisticsError(
            f"{folder} has no {STATISTICS_FILE}, which smolact's trainer writes (trainer_class: SmolVLATrainer, one dataset). "
            "Train a step with it: --policy.is_pretrained=true --policy.model_name_or_path=CHECKPOINT."
        )
    saved = read_json_object(path, "Train a step, which writes it again.")
    modes, statistics = {"VISUAL": NormalizationMode.IDENTITY}, {}
    for kind, feature in (("STATE", STATE), ("ACTION", ACTION)):
        if kind.lower() not in saved:
            raise StatisticsError(
                f"{path} does not say how '{kind.lower()}' is normalized. Train a step, which writes it again."
            )
        modes[kind], values = _convert(saved[kind.lower()], path)
        if values:
            statistics[feature] = values
    return modes, statistics


def _convert(
    saved: Mapping[str, Any], path: Path
) -> tuple[NormalizationMode, dict[str, np.ndarray[Any, Any]]]:
    mode = _MODES.get(str(saved.get("mode")))
    if mode is None:
        raise StatisticsError(
            f"{path}: '{saved.get('mode')}' is no normalization that smolact has ({', '.join(_MODES)})."
        )
    if mode is NormalizationMode.QUANTILES:
        logger.warning(
            "IL-Studio's percentile normalization cuts off what is out of range; smolact's does not."
        )
    pairs = _PAIRS[mode]
    if any(name not in saved.get("statistics", {}) for name, _ in pairs):
        raise StatisticsError(
            f"{path} lacks one of {', '.join(name for name, _ in pairs)}. Train a step, which writes it again."
        )
    values = {name: np.asarray(saved["statistics"][name], dtype=np.float64) for name, _ in pairs}
    if "std" in values:
        values["std"] = np.maximum(values["std"], saved.get("min_std", 0.0))
    for name, neutral in pairs:
        values[name] = np.where(_is_normalized(saved.get("mask"), len(values[name])), values[name], neutral)
    return mode, values


def _is_normalized(mask: Any, width: int) -> np.ndarray[Any, Any]:
    """Return a bool per value from IL-Studio's mask, which is such an array or the indices of unnormalized values."""
    if mask is None:
        return np.ones(width, dtype=bool)
    array = np.asarray(mask)
    if array.dtype == bool:
        return array
    result = np.ones(width, dtype=bool)
    result[array.astype(int)] = False
    return result

"""The statistics of each normalization mode, and the replacement of coinciding quantiles."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from torch import Tensor

from smolact.types import NormalizationMode

logger = logging.getLogger(__name__)

STATISTICS_OF: dict[NormalizationMode, tuple[str, ...]] = {
    NormalizationMode.IDENTITY: (),
    NormalizationMode.MEAN_STD: ("mean", "std"),
    NormalizationMode.MIN_MAX: ("min", "max"),
    NormalizationMode.QUANTILES: ("q01", "q99"),
    NormalizationMode.QUANTILE10: ("q10", "q90"),
}
"""The two statistics of a mode: centre and width, or the values that become -1 and 1."""

DEGENERATE_SHARE = 1e-3
"""Quantiles that are less than this share of the whole range apart describe a value's resting position, not its motion."""

MINIMUM_AND_MAXIMUM = "so minimum and maximum are used for them"


def is_degenerate(values: Mapping[str, Tensor], mode: NormalizationMode) -> Tensor | None:
    """Return the dimensions of a feature in which the quantiles of `mode` coincide, while minimum and maximum do not.

    A gripper that moves in 3 of 600 frames has the same q01 and q99, and a range of zero would make 2e8 of it when it moves.

    Returns:
        a mask of the statistics' shape; None for modes without quantiles, and where minimum or maximum are not known.
    """
    if mode not in (NormalizationMode.QUANTILES, NormalizationMode.QUANTILE10):
        return None
    names = (*STATISTICS_OF[mode], "min", "max")
    if any(name not in values or values[name].shape != values[names[0]].shape for name in names):
        return None
    low, high, minimum, maximum = (values[name] for name in names)
    full_range = maximum - minimum
    return torch.isfinite(full_range) & (full_range > 0) & (high - low <= DEGENERATE_SHARE * full_range)


def with_usable_quantiles(values: Mapping[str, Tensor], mode: NormalizationMode) -> dict[str, Tensor]:
    """Return statistics with minimum and maximum for degenerate quantiles, so that LeRobot normalizes as in training, too."""
    mask = is_degenerate(values, mode)
    if mask is None or not mask.any():
        return dict(values)
    low, high = STATISTICS_OF[mode]
    return {
        **values,
        low: torch.where(mask, values["min"], values[low]),
        high: torch.where(mask, values["max"], values[high]),
    }


def warn_of_degenerate(key: str, mode: NormalizationMode, mask: Tensor, consequence: str) -> None:
    """Log the dimensions of the feature `key` in which the quantiles coincide, and the consequence."""
    if mask.any():
        numbers = ", ".join(map(str, mask.flatten().nonzero().flatten().tolist()))
        low, high = STATISTICS_OF[mode]
        logger.warning(
            "'%s': %s and %s of the numbers %s lie together, %s.", key, low, high, numbers, consequence
        )

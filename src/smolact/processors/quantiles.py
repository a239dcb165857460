"""Which statistics a normalization takes, and what takes the place of quantiles that lie together."""

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
"""The two statistics that a mode takes: centre and width, or what becomes -1 and what becomes 1."""

NOTHING = 1e-3
"""Quantiles that are less than this share of the whole range apart say where a value rests, not where it moves."""

MINIMUM_AND_MAXIMUM = "so minimum and maximum are used for them"


def is_degenerate(values: Mapping[str, Tensor], mode: NormalizationMode) -> Tensor | None:
    """Of which numbers of a feature the quantiles of `mode` lie together, while minimum and maximum do not.

    A gripper that moves in 3 of 600 frames has the same q01 and q99, and a range of zero would make 2e8 of it when it moves.

    Args:
        values: the feature's statistics.
        mode: how it is normalized.

    Returns:
        a mask of the statistics' shape; None for modes without quantiles, and where minimum or maximum are not known.
    """
    if mode not in (NormalizationMode.QUANTILES, NormalizationMode.QUANTILE10):
        return None
    names = (*STATISTICS_OF[mode], "min", "max")
    if any(name not in values or values[name].shape != values[names[0]].shape for name in names):
        return None
    low, high, least, most = (values[name] for name in names)
    whole = most - least
    return torch.isfinite(whole) & (whole > 0) & (high - low <= NOTHING * whole)


def with_usable_quantiles(values: Mapping[str, Tensor], mode: NormalizationMode) -> dict[str, Tensor]:
    """Statistics whose quantiles are minimum and maximum where `is_degenerate`, and as they were everywhere else.

    They are saved like this, so that whoever opens the checkpoint, LeRobot too, normalizes as in training.
    """
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
    """Say of which numbers of the feature `key` the quantiles lie together, and what follows from that."""
    if mask.any():
        numbers = ", ".join(map(str, mask.flatten().nonzero().flatten().tolist()))
        low, high = STATISTICS_OF[mode]
        logger.warning(
            "'%s': %s and %s of the numbers %s lie together, %s.", key, low, high, numbers, consequence
        )

"""The samples of a dataset of corrections, in which each frame is marked as the policy's or a person's (`INTERVENTION`)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from smolact.errors import ConfigError, FeatureError
from smolact.training.stream import BLOCK, IndexOrder, Mixture, ShuffledEpochs
from smolact.types import INTERVENTION

CorrectionsWeight = float | Literal["only"]


def weighted_corrections(
    frames: NDArray[np.int64],
    is_correction: NDArray[np.bool_],
    weight: CorrectionsWeight,
    seed: int,
    purpose: str,
) -> IndexOrder:
    """Return an order in which a correction occurs `weight` times as often as another frame.

    Args:
        frames: (N,), the numbers of the frames.
        is_correction: (N,), which of them a person drove.
        weight: above 0; `only` for the corrections alone.
        seed, purpose: as of `ShuffledEpochs`.

    Raises:
        ConfigError: `only`, and there is no correction; or the share of one kind is too small for a mixture.
    """
    corrections, others = frames[is_correction], frames[~is_correction]
    if weight == "only":
        if not len(corrections):
            raise ConfigError(
                "--dataset.corrections_weight=only leaves nothing of a dataset: a person corrected the policy in none of its frames. "
                "Leave the flag or the dataset out."
            )
        return ShuffledEpochs(corrections, seed, purpose)
    if not len(corrections) or not len(others):
        return ShuffledEpochs(frames, seed, purpose)
    weights = [weight * len(corrections), float(len(others))]
    if min(weights) / sum(weights) * BLOCK < 2:
        raise ConfigError(
            f"--dataset.corrections_weight={weight:g}: of the samples {weights[0] / sum(weights):.2%} would be corrections, and "
            f"each kind needs {2 / BLOCK:.1%} or more. Choose a weight nearer to {len(others) / len(corrections):.2g}, which makes "
            "halves, or 'only'."
        )
    orders = [
        ShuffledEpochs(corrections, seed, f"{purpose}, corrections"),
        ShuffledEpochs(others, seed, f"{purpose}, other frames"),
    ]
    return Mixture(orders, weights, seed, f"{purpose}, mixture")


def check_marks(weight: CorrectionsWeight | None, features: Mapping[str, Collection[str]]) -> None:
    """Raise a `FeatureError` if corrections are to be weighted, and no dataset has a mark of them.

    Args:
        weight: `--dataset.corrections_weight`.
        features: the names of each dataset's features.
    """
    if weight is None or any(INTERVENTION in names for names in features.values()):
        return
    raise FeatureError(
        f"--dataset.corrections_weight={weight}: no frame of {', '.join(features)} is marked as a correction or not: there is "
        f"no feature '{INTERVENTION}', which `smolact rollout --corrections=FOLDER` records. Leave the flag out."
    )

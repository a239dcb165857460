"""Collates samples into a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from smolact.errors import FeatureError
from smolact.types import Batch


def collate(samples: Sequence[Mapping[str, Any]]) -> Batch:
    """Stack samples into a batch: tensors and numbers get a leading B, everything else (`task`) becomes a list.

    Raises:
        FeatureError: the samples differ in their keys or in a tensor's shape.
    """
    if not samples:
        raise FeatureError("There are no samples to make a batch of: expected at least one.")
    keys = list(samples[0])
    for number, sample in enumerate(samples):
        if sample.keys() != samples[0].keys():
            differing = sorted(sample.keys() ^ samples[0].keys())
            raise FeatureError(
                f"Sample {number} of the batch and sample 0 have not the same keys: {', '.join(differing)} only in one "
                "of them. Every sample of a batch needs the same features."
            )
    return {key: _stack(key, [sample[key] for sample in samples]) for key in keys}


def _stack(key: str, values: list[Any]) -> Any:
    if isinstance(values[0], torch.Tensor):
        shapes = list(dict.fromkeys(tuple(value.shape) for value in values))
        if len(shapes) > 1:
            raise FeatureError(
                f"'{key}' has different shapes in one batch: {', '.join(map(str, shapes))}. Resize images to one size, "
                "or leave datasets of another shape out."
            )
        return torch.stack(values)
    if isinstance(values[0], (bool, int, float)):
        return torch.tensor(values)
    return values

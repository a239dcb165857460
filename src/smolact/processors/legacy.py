"""Older checkpoints: no processor files, the statistics lie among the weights, where normalization was layers.

normalize_inputs.buffer_observation_state.mean
unnormalize_outputs.buffer_action.std
normalize_inputs.so100-red_buffer_observation_state.mean    trained on several datasets
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from smolact.errors import StatisticsError
from smolact.processors.statistics import select_statistics
from smolact.types import Statistics

_LAYERS = (
    "normalize_inputs",
    "normalize_targets",
    "unnormalize_outputs",
    "unnormalize_targets",
    "input_normalizer",
    "output_normalizer",
    "normalize",
    "unnormalize",
)
_STATISTIC = re.compile(rf"(?:{'|'.join(_LAYERS)})\.(?P<name>.+\.(?:mean|std|min|max|q\d\d))")


def is_statistics_key(key: str) -> bool:
    """Whether a tensor of an older `model.safetensors` is a statistic, not a weight."""
    return _STATISTIC.fullmatch(key) is not None


def statistics_from_old_weights(
    tensors: Mapping[str, Tensor], features: Iterable[str], key: str | None = None
) -> Statistics:
    """The statistics that an older checkpoint kept among its weights.

    The layers for targets and for outputs each kept the action's: where one was never set (infinite), the other is
    taken.

    Args:
        tensors: the content of `model.safetensors`; weights are passed over.
        features: the policy's inputs and outputs.
        key: which dataset, where it was trained on several.

    Raises:
        StatisticsError: there are none, those of a feature were never set, two copies differ, or a key must be picked.
    """
    state: dict[str, Tensor] = {}
    for key_in_file, tensor in tensors.items():
        match = _STATISTIC.fullmatch(key_in_file)
        if match is None:
            continue
        known = state.setdefault(match["name"], tensor)
        if not _is_finite(known):
            state[match["name"]] = tensor
        elif _is_finite(tensor) and not torch.equal(known, tensor):
            raise StatisticsError(
                f"The weights hold two different values of '{match['name']}', one of them as '{key_in_file}': neither "
                "can be trusted. Train on a dataset, which brings statistics of its own."
            )
    if not state:
        raise StatisticsError(
            "The checkpoint has neither processor files nor statistics among its weights (expected tensors such as "
            f"{_LAYERS[0]}.buffer_observation_state.mean). Train on a dataset, which brings statistics of its own."
        )
    wanted = tuple(features)
    selected = select_statistics(state, key, wanted)
    for feature in wanted:
        for statistic, tensor in selected.get(feature, {}).items():
            if not _is_finite(tensor):
                raise StatisticsError(
                    f"The {statistic} of {feature} among the checkpoint's weights is not finite: it was never set. "
                    "Train on a dataset, which brings statistics of its own."
                )
    return {
        feature: {name: value.float().numpy() for name, value in of.items()}
        for feature, of in selected.items()
    }


def _is_finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())

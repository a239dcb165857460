"""Older checkpoints without processor files: normalization was done by layers, so that the statistics are among the weights.

normalize_inputs.buffer_observation_state.mean
unnormalize_outputs.buffer_action.std
normalize_inputs.so100-red_buffer_observation_state.mean    trained on several datasets
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from smolact.errors import StatisticsError

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
    """Return whether a tensor of an older `model.safetensors` is a statistic, not a weight."""
    return _STATISTIC.fullmatch(key) is not None


def state_of_old_weights(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the statistics among an older checkpoint's weights in the form of a processor's state file.

    The layers for targets and for outputs each stored the action's: if one was never set (infinite), the other is used.

    Raises:
        StatisticsError: two copies of one differ.
    """
    state: dict[str, Tensor] = {}
    for key_in_file, tensor in tensors.items():
        match = _STATISTIC.fullmatch(key_in_file)
        if match is None:
            continue
        previous = state.setdefault(match["name"], tensor)
        if not _is_finite(previous):
            state[match["name"]] = tensor
        elif _is_finite(tensor) and not torch.equal(previous, tensor):
            raise StatisticsError(
                f"The weights hold two different values of '{match['name']}', one of them as '{key_in_file}': neither "
                "can be trusted. Train on a dataset, which brings statistics of its own."
            )
    return state


def _is_finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())

"""Normalization by a dataset's statistics, from the robot's units to the policy's range and back.

Source: LeRobot's `normalize_processor.py`, with the same results. Where LeRobot passes a feature through because a
statistic is missing, this raises.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import InitVar, dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from smolact.errors import ConfigError, FeatureError, StatisticsError
from smolact.processors.quantiles import (
    MINIMUM_AND_MAXIMUM,
    STATISTICS_OF,
    is_degenerate,
    warn_of_degenerate,
    with_usable_quantiles,
)
from smolact.processors.statistics import (
    STATS_FLAG,
    STATS_KEY_FLAG,
    dataset_keys,
    select_statistics,
    unselected_statistics,
)
from smolact.processors.step import ProcessorStep, register_step
from smolact.processors.steps import to_float_image
from smolact.types import FeatureType, NormalizationMode, PolicyFeature

logger = logging.getLogger(__name__)


def normalize(x: Tensor, pair: tuple[Tensor, Tensor], mode: NormalizationMode, eps: float = 1e-8) -> Tensor:
    """Scale `x` to the policy's range by the two statistics of `mode` (they broadcast against the last dimensions of `x`)."""
    if mode is NormalizationMode.MEAN_STD:
        mean, std = pair
        return (x - mean) / (std + eps)
    low, _ = pair
    return 2 * (x - low) / _span(pair, eps) - 1


def unnormalize(x: Tensor, pair: tuple[Tensor, Tensor], mode: NormalizationMode, eps: float = 1e-8) -> Tensor:
    """Scale `x` back to the robot's units: the inverse of `normalize`."""
    if mode is NormalizationMode.MEAN_STD:
        mean, std = pair
        return x * std + mean  # without eps: off by a factor of 1 - eps/std, as in LeRobot
    low, _ = pair
    return (x + 1) / 2 * _span(pair, eps) + low


def _span(pair: tuple[Tensor, Tensor], eps: float) -> Tensor:
    low, high = pair
    span = high - low
    return torch.where(span == 0, eps, span)  # a constant value becomes -1


@dataclass
class _StatisticsStep(ProcessorStep):
    """The base of both directions: features, modes and statistics.

    Args:
        features: name to `PolicyFeature`, or to `{"type": …, "shape": […]}` as in files.
        norm_map: feature type to mode; other types are not normalized.
        stats: feature to statistic to array; coinciding quantiles are replaced by minimum and maximum (see
            `with_usable_quantiles`). None: they come from the state file, unchanged, since its policy was trained with them, or
            the step is not used.
        eps: added to a standard deviation; replaces a range of zero.
        normalize_observation_keys: the observations to normalize; None for all.
        stats_key: the dataset whose statistics are used, if a state file holds several.

    Raises:
        StatisticsError: a required statistic is missing, not finite, or of another shape than its feature: with `stats` on
            construction, with those of a state file, or none, at the first batch.
        ConfigError: features or modes that do not exist.
    """

    features: dict[str, PolicyFeature]
    norm_map: dict[FeatureType, NormalizationMode]
    stats: InitVar[Mapping[str, Mapping[str, Any]] | None] = None
    eps: float = 1e-8
    normalize_observation_keys: set[str] | None = None
    stats_key: str | None = None
    warns: ClassVar[bool] = False
    """Whether the step warns about degenerate statistics: one of the two directions does."""

    def __post_init__(self, stats: Mapping[str, Mapping[str, Any]] | None) -> None:
        self.features = _read_features(self.features)
        self.norm_map = _read_modes(self.norm_map)
        if (
            isinstance(self.eps, bool)
            or not isinstance(self.eps, (int, float))
            or not 0 <= self.eps < math.inf
        ):
            raise ConfigError(
                f"eps={self.eps!r} of a normalizer is not a small positive number, such as 1e-8."
            )
        if self.normalize_observation_keys is not None:
            self.normalize_observation_keys = set(self.normalize_observation_keys)
        self._statistics: dict[str, dict[str, Tensor]] = {}
        self._on_device: dict[tuple[str, torch.device], tuple[Tensor, Tensor]] = {}
        self._unselected: dict[str, Tensor] = {}
        self._datasets_by_feature: dict[str, tuple[str, ...]] = {}
        self._has_own_statistics = bool(stats)
        if stats:
            tensors = {feature: _as_tensors(feature, values) for feature, values in stats.items()}
            self._warn(tensors, MINIMUM_AND_MAXIMUM)
            self._set_statistics(
                {
                    key: with_usable_quantiles(values, self._mode(key)) if key in self.features else values
                    for key, values in tensors.items()
                }
            )
            for key in self.features:
                if self._mode(key) is not NormalizationMode.IDENTITY:
                    self._checked_pair(key)

    def get_config(self) -> dict[str, Any]:
        """Return the settings except the statistics, which are tensors, and `stats_key`, which is only used for loading."""
        config: dict[str, Any] = {
            "eps": self.eps,
            "features": {
                key: {"type": feature.type.value, "shape": list(feature.shape)}
                for key, feature in self.features.items()
            },
            "norm_map": {feature_type.value: mode.value for feature_type, mode in self.norm_map.items()},
        }
        if self.normalize_observation_keys is not None:
            config["normalize_observation_keys"] = sorted(self.normalize_observation_keys)
        return config

    def state_dict(self) -> dict[str, Tensor]:
        """Return `FEATURE.STATISTIC` to tensor of every feature; those of several datasets unchanged until one is selected."""
        return {name: tensor.clone() for name, tensor in self._unselected.items()} | {
            f"{feature}.{name}": tensor.clone()
            for feature, values in self._statistics.items()
            for name, tensor in values.items()
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load a state file's statistics, unless the step has its own. They are checked on use, or by `require_statistics`.

        Raises:
            StatisticsError: the file has no dataset `stats_key`.
        """
        if self._has_own_statistics:
            return
        if self.stats_key is None and len(dataset_keys(state)) > 1:
            self._unselected = dict(state)
            selected, self._datasets_by_feature = unselected_statistics(state, self.features)
        else:
            selected = select_statistics(state, self.stats_key, self.features)
        tensors = {feature: _as_tensors(feature, values) for feature, values in selected.items()}
        self._warn(tensors, "and they stay as they are, since the checkpoint was trained with them")
        self._set_statistics(tensors)

    def statistics_problems(self) -> dict[str, str]:
        """Return each feature with unusable statistics, and a sentence with the reason and the remedy."""
        problems = {}
        for key in self.features:
            if self._mode(key) is not NormalizationMode.IDENTITY:
                try:
                    self._checked_pair(key)
                except StatisticsError as error:
                    problems[key] = str(error)
        return problems

    def fill(self, statistics: Mapping[str, Mapping[str, Any]], source: str) -> list[str]:
        """Take missing statistics from `statistics` of `source`, and return the features that lacked them.

        Raises:
            StatisticsError: `source` lacks them, too, or has them in another shape.
        """
        lacking = list(self.statistics_problems())
        for key in lacking:
            required = STATISTICS_OF[self._mode(key)]
            values = statistics.get(key, {})
            if any(name not in values for name in required):
                raise StatisticsError(
                    f"{STATS_FLAG}={source}: it has no {' and '.join(required)} of '{key}', which the checkpoint lacks; it has "
                    f"statistics of {', '.join(statistics) or 'nothing'}. Give another dataset, or the names of this one with "
                    f'--rename_map=\'{{"NAME": "{key}"}}\'.'
                )
            tensors = _as_tensors(key, values)
            self._warn({key: tensors}, MINIMUM_AND_MAXIMUM)
            self._statistics[key] = with_usable_quantiles(tensors, self._mode(key))
            self._checked_pair(key)
        self._on_device = {}
        return lacking

    @property
    def statistics(self) -> dict[str, dict[str, Tensor]]:
        """Feature to statistic to tensor (float32, CPU), of every feature with statistics."""
        return {feature: dict(values) for feature, values in self._statistics.items()}

    def _applies_to(self, key: str, value: Any) -> bool:
        return key in self.features and value is not None  # LeRobot sets a missing action to None

    def _set_statistics(self, statistics: dict[str, dict[str, Tensor]]) -> None:
        self._statistics, self._on_device = statistics, {}

    def _warn(self, statistics: Mapping[str, Mapping[str, Tensor]], consequence: str) -> None:
        for key, values in statistics.items() if self.warns else ():
            mode = self._mode(key) if key in self.features else NormalizationMode.IDENTITY
            if mode not in (NormalizationMode.QUANTILES, NormalizationMode.QUANTILE10):
                continue
            mask = is_degenerate(values, mode)
            if mask is not None:
                warn_of_degenerate(key, mode, mask, consequence)
            elif all(name in values for name in STATISTICS_OF[mode]):
                low, high = (values[name] for name in STATISTICS_OF[mode])
                unknown = "and minimum and maximum are not known: whatever the policy says, they stay there"
                warn_of_degenerate(key, mode, low == high, unknown)

    def _mode(self, key: str) -> NormalizationMode:
        feature_type, only = self.features[key].type, self.normalize_observation_keys
        if only is not None and feature_type is not FeatureType.ACTION and key not in only:
            return NormalizationMode.IDENTITY
        return self.norm_map.get(feature_type, NormalizationMode.IDENTITY)

    def _pair(self, key: str, device: torch.device) -> tuple[Tensor, Tensor]:
        # Moved once per device, so that the loop does not wait for a copy at each step.
        if (key, device) not in self._on_device:
            first, second = self._checked_pair(key)
            self._on_device[key, device] = first.to(device), second.to(device)
        return self._on_device[key, device]

    def _checked_pair(self, key: str) -> tuple[Tensor, Tensor]:
        feature, mode, values = self.features[key], self._mode(key), self._statistics.get(key, {})
        missing = [name for name in STATISTICS_OF[mode] if name not in values]
        if missing:
            needs = f"'{key}' is normalized with {mode.value}, which needs its {' and '.join(STATISTICS_OF[mode])}"
            if key in self._datasets_by_feature:
                datasets = self._datasets_by_feature[key]
                raise StatisticsError(
                    f"{needs}: the checkpoint has those of {len(datasets)} datasets, and which of them has your robot's units "
                    f"can't be known. Pick one with {STATS_KEY_FLAG}=KEY; the keys are: {', '.join(datasets)}. Or take those of "
                    f"a dataset of your robot: {STATS_FLAG}=FOLDER_OR_HUB_ID."
                )
            available = f"only its {', '.join(values)}" if values else "none of it"
            others = f" (it has statistics of {', '.join(self._statistics)})" if self._statistics else ""
            raise StatisticsError(
                f"{needs}, and the checkpoint or dataset has {available}{others}. Take those of a dataset of your robot: "
                f"{STATS_FLAG}=FOLDER_OR_HUB_ID."
            )
        pair = tuple(values[name] for name in STATISTICS_OF[mode])
        for name, tensor in zip(STATISTICS_OF[mode], pair, strict=True):
            if not torch.isfinite(tensor).all():
                raise StatisticsError(
                    f"The {name} of '{key}' is not finite ({tensor.flatten().tolist()[:8]}): it was never set, or the "
                    "data holds a NaN. Compute the dataset's statistics again (smolact dataset stats), or take those of another "
                    f"dataset of your robot: {STATS_FLAG}=FOLDER_OR_HUB_ID."
                )
        if feature.type is FeatureType.VISUAL:  # one value per channel
            pair = tuple(tensor.reshape(-1, 1, 1) if tensor.ndim == 1 else tensor for tensor in pair)
        for name, tensor in zip(STATISTICS_OF[mode], pair, strict=True):
            if not _fits(tensor.shape, feature.shape):
                raise StatisticsError(
                    f"The {name} of '{key}' has the shape {tuple(tensor.shape)}, the feature {feature.shape}: these are "
                    f"the statistics of another robot. Take those of a dataset of your robot: {STATS_FLAG}=FOLDER_OR_HUB_ID."
                )
        return pair[0], pair[1]

    def _transformed(self, key: str, value: Any, *, inverse: bool) -> Tensor:
        """Normalize or unnormalize in float32 at least: 8 bits of mantissa are too few for a joint angle."""
        mode = self._mode(key)
        if not isinstance(value, Tensor):
            raise FeatureError(f"'{key}' came as {type(value).__name__}: expected a tensor.")
        if mode is NormalizationMode.IDENTITY:
            return value
        pair = self._pair(key, value.device)
        if not _fits(pair[0].shape, value.shape):
            raise FeatureError(
                f"'{key}' came with the shape {tuple(value.shape)}, its statistics have {tuple(pair[0].shape)}: "
                "this policy was trained on other data."
            )
        wide = value.to(torch.promote_types(value.dtype, torch.float32))
        return unnormalize(wide, pair, mode, self.eps) if inverse else normalize(wide, pair, mode, self.eps)


@register_step("normalizer_processor")
@dataclass
class NormalizerProcessorStep(_StatisticsStep):
    """Scales observations and actions to the policy's range, after uint8 images to [0, 1]. Floating-point features keep their dtype."""

    warns: ClassVar[bool] = True

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Return the batch in the policy's range."""
        return {
            key: self._normalized(key, value) if self._applies_to(key, value) else value
            for key, value in data.items()
        }

    def _normalized(self, key: str, value: Any) -> Tensor:
        if self.features[key].type is FeatureType.VISUAL and isinstance(value, Tensor):
            value = to_float_image(value)
        result = self._transformed(key, value, inverse=False)
        return result.to(value.dtype) if value.is_floating_point() else result


@register_step("unnormalizer_processor")
@dataclass
class UnnormalizerProcessorStep(_StatisticsStep):
    """Scales the policy's actions back to the robot's units, in float32 at least."""

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Return the batch in the robot's units."""
        return {
            key: self._transformed(key, value, inverse=True) if self._applies_to(key, value) else value
            for key, value in data.items()
        }


def _read_features(features: Any) -> dict[str, PolicyFeature]:
    try:
        return {
            key: feature
            if isinstance(feature, PolicyFeature)
            else PolicyFeature(FeatureType(feature["type"]), tuple(int(size) for size in feature["shape"]))
            for key, feature in features.items()
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"The features of a normalizer are {features!r}: expected {{name: {{'type': …, 'shape': […]}}}} with a type "
            f"of {', '.join(FeatureType)} ({error!r})."
        ) from error


def _read_modes(norm_map: Any) -> dict[FeatureType, NormalizationMode]:
    try:
        return {FeatureType(feature_type): NormalizationMode(mode) for feature_type, mode in norm_map.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"The normalization modes are {norm_map!r}: expected {{type: mode}} with types of {', '.join(FeatureType)} "
            f"and modes of {', '.join(NormalizationMode)} ({error})."
        ) from error


def _as_tensors(feature: str, values: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return copies of a feature's statistics, in float32 on the CPU."""
    try:
        arrays = {name: _as_array(value) for name, value in values.items() if value is not None}
    except (AttributeError, TypeError, ValueError) as error:
        raise StatisticsError(
            f"The statistics of '{feature}' are not arrays of numbers ({error})."
        ) from error
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _as_array(value: Any) -> np.ndarray[Any, Any]:
    plain = value.detach().to("cpu", torch.float32).numpy() if isinstance(value, Tensor) else value
    return np.array(plain, dtype=np.float32)


def _fits(shape: tuple[int, ...], target: tuple[int, ...]) -> bool:
    """Return whether an array of `shape` broadcasts to `target` without enlarging it."""
    return len(shape) <= len(target) and all(
        size in (1, wanted) for size, wanted in zip(reversed(shape), reversed(target), strict=False)
    )

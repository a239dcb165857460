"""Between the robot's units and the policy's: normalization by a dataset's statistics, and the way back.

Source: LeRobot's `normalize_processor.py`, whose numbers these are. Where it passes a feature through because a
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
    undecided_statistics,
)
from smolact.processors.step import ProcessorStep, register_step
from smolact.processors.steps import to_float_image
from smolact.types import FeatureType, NormalizationMode, PolicyFeature

logger = logging.getLogger(__name__)


def normalize(x: Tensor, pair: tuple[Tensor, Tensor], mode: NormalizationMode, eps: float = 1e-8) -> Tensor:
    """`x` in the policy's range, by the two statistics of `mode` (they broadcast against the last dimensions of `x`)."""
    if mode is NormalizationMode.MEAN_STD:
        mean, std = pair
        return (x - mean) / (std + eps)
    low, _ = pair
    return 2 * (x - low) / _span(pair, eps) - 1


def unnormalize(x: Tensor, pair: tuple[Tensor, Tensor], mode: NormalizationMode, eps: float = 1e-8) -> Tensor:
    """`x` in the robot's units: the way back from `normalize`."""
    if mode is NormalizationMode.MEAN_STD:
        mean, std = pair
        return x * std + mean  # without eps: off by a factor of 1 - eps/std, as in LeRobot
    low, _ = pair
    return (x + 1) / 2 * _span(pair, eps) + low


def _span(pair: tuple[Tensor, Tensor], eps: float) -> Tensor:
    low, high = pair
    span = high - low
    return torch.where(span == 0, eps, span)  # a value that never moved becomes -1


@dataclass
class _StatisticsStep(ProcessorStep):
    """What the two directions share: features, modes and statistics.

    Args:
        features: name to `PolicyFeature`, or to `{"type": …, "shape": […]}` as files have it.
        norm_map: feature type to mode; a type that is not in it is not normalized.
        stats: feature to statistic to array. None: they come from the state file, or the step is not used.
        eps: added to a standard deviation; takes the place of a range that is zero.
            Quantiles that lie together give way to minimum and maximum (see `with_usable_quantiles`). A state file's are taken
            as they are: its policy was trained with them.
        normalize_observation_keys: only these observations; None for all.
        stats_key: which dataset's statistics to take from a state file that holds several.

    Raises:
        StatisticsError: a statistic that is needed is missing, not finite, or of another shape than its feature: with
            `stats` when the step is made, with those of a state file, or none, at the first batch.
        ConfigError: features or modes that do not exist.
    """

    features: dict[str, PolicyFeature]
    norm_map: dict[FeatureType, NormalizationMode]
    stats: InitVar[Mapping[str, Mapping[str, Any]] | None] = None
    eps: float = 1e-8
    normalize_observation_keys: set[str] | None = None
    stats_key: str | None = None
    tells: ClassVar[bool] = False
    """Whether it says what is odd about statistics: one of the two directions does."""

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
        self._undecided: dict[str, Tensor] = {}
        self._datasets_of: dict[str, tuple[str, ...]] = {}
        self._given = bool(stats)
        if stats:
            given = {feature: _as_tensors(feature, values) for feature, values in stats.items()}
            self._tell(given, MINIMUM_AND_MAXIMUM)
            self._take(
                {
                    key: with_usable_quantiles(values, self._mode(key)) if key in self.features else values
                    for key, values in given.items()
                }
            )
            for key in self.features:
                if self._mode(key) is not NormalizationMode.IDENTITY:
                    self._checked_pair(key)

    def get_config(self) -> dict[str, Any]:
        """Everything but the statistics, which are tensors, and `stats_key`, which has done its work by then."""
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
        """`FEATURE.STATISTIC` to tensor, of every feature; while none of several datasets is picked, theirs as they came."""
        return {name: tensor.clone() for name, tensor in self._undecided.items()} | {
            f"{feature}.{name}": tensor.clone()
            for feature, values in self._statistics.items()
            for name, tensor in values.items()
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take the statistics of a state file, unless the step was made with its own.

        Whether they are complete is asked when they are used, or by `require_statistics`.

        Raises:
            StatisticsError: the file has no dataset `stats_key`.
        """
        if self._given:
            return
        if self.stats_key is None and len(dataset_keys(state)) > 1:
            self._undecided = dict(state)
            selected, self._datasets_of = undecided_statistics(state, self.features)
        else:
            selected = select_statistics(state, self.stats_key, self.features)
        kept = {feature: _as_tensors(feature, values) for feature, values in selected.items()}
        self._tell(kept, "and they stay as they are, since the checkpoint was trained with them")
        self._take(kept)

    def statistics_problems(self) -> dict[str, str]:
        """Each feature whose statistics can't be used, and a sentence that says why and what settles it."""
        problems = {}
        for key in self.features:
            if self._mode(key) is not NormalizationMode.IDENTITY:
                try:
                    self._checked_pair(key)
                except StatisticsError as error:
                    problems[key] = str(error)
        return problems

    def fill(self, statistics: Mapping[str, Mapping[str, Any]], source: str) -> list[str]:
        """Take what is lacking from `statistics` of `source`; returns the features that lacked it.

        Raises:
            StatisticsError: `source` has not what is lacking, or of another shape.
        """
        lacking = list(self.statistics_problems())
        for key in lacking:
            wanted = STATISTICS_OF[self._mode(key)]
            values = statistics.get(key, {})
            if any(name not in values for name in wanted):
                raise StatisticsError(
                    f"{STATS_FLAG}={source}: it has no {' and '.join(wanted)} of '{key}', which the checkpoint lacks; it has "
                    f"statistics of {', '.join(statistics) or 'nothing'}. Give another dataset, or the names of this one with "
                    f'--rename_map=\'{{"NAME": "{key}"}}\'.'
                )
            given = _as_tensors(key, values)
            self._tell({key: given}, MINIMUM_AND_MAXIMUM)
            self._statistics[key] = with_usable_quantiles(given, self._mode(key))
            self._checked_pair(key)
        self._on_device = {}
        return lacking

    @property
    def statistics(self) -> dict[str, dict[str, Tensor]]:
        """Feature to statistic to tensor (float32, CPU), of every feature that statistics are known of."""
        return {feature: dict(values) for feature, values in self._statistics.items()}

    def _has(self, key: str, value: Any) -> bool:
        return key in self.features and value is not None  # LeRobot puts None for an action that is not there

    def _take(self, statistics: dict[str, dict[str, Tensor]]) -> None:
        self._statistics, self._on_device = statistics, {}

    def _tell(self, statistics: Mapping[str, Mapping[str, Tensor]], consequence: str) -> None:
        for key, values in statistics.items() if self.tells else ():
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
        # Moved once a device, so that the loop does not wait for a copy at each step.
        if (key, device) not in self._on_device:
            first, second = self._checked_pair(key)
            self._on_device[key, device] = first.to(device), second.to(device)
        return self._on_device[key, device]

    def _checked_pair(self, key: str) -> tuple[Tensor, Tensor]:
        feature, mode, values = self.features[key], self._mode(key), self._statistics.get(key, {})
        missing = [name for name in STATISTICS_OF[mode] if name not in values]
        if missing:
            needs = f"'{key}' is normalized with {mode.value}, which needs its {' and '.join(STATISTICS_OF[mode])}"
            if key in self._datasets_of:
                datasets = self._datasets_of[key]
                raise StatisticsError(
                    f"{needs}: the checkpoint has those of {len(datasets)} datasets, and which of them has your robot's units "
                    f"can't be known. Pick one with {STATS_KEY_FLAG}=KEY; the keys are: {', '.join(datasets)}. Or take those of "
                    f"a dataset of your robot: {STATS_FLAG}=FOLDER_OR_HUB_ID."
                )
            here = f"only its {', '.join(values)}" if values else "none of it"
            others = f" (it has statistics of {', '.join(self._statistics)})" if self._statistics else ""
            raise StatisticsError(
                f"{needs}, and the checkpoint or dataset has {here}{others}. Take those of a dataset of your robot: "
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
        if feature.type is FeatureType.VISUAL:
            pair = tuple(
                tensor.reshape(-1, 1, 1) if tensor.ndim == 1 else tensor for tensor in pair
            )  # a value a channel
        for name, tensor in zip(STATISTICS_OF[mode], pair, strict=True):
            if not _fits(tensor.shape, feature.shape):
                raise StatisticsError(
                    f"The {name} of '{key}' has the shape {tuple(tensor.shape)}, the feature {feature.shape}: these are "
                    f"the statistics of another robot. Take those of a dataset of your robot: {STATS_FLAG}=FOLDER_OR_HUB_ID."
                )
        return pair[0], pair[1]

    def _transformed(self, key: str, value: Any, *, inverse: bool) -> Tensor:
        """Computed in float32 at least: 8 bits of mantissa are too few for a joint angle."""
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
    """Brings observations and actions from the robot's units into the policy's range; uint8 images to [0, 1] first.

    A floating-point feature keeps its dtype.
    """

    tells: ClassVar[bool] = True

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """The batch in the policy's range."""
        return {
            key: self._normalized(key, value) if self._has(key, value) else value
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
    """Brings the policy's actions back to the robot's units, in float32 at least."""

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """The batch in the robot's units."""
        return {
            key: self._transformed(key, value, inverse=True) if self._has(key, value) else value
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
    """Copies of a feature's statistics, in float32 on the CPU."""
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
    """Whether an array of `shape` broadcasts to `target` and does not enlarge it."""
    return len(shape) <= len(target) and all(
        size in (1, wanted) for size, wanted in zip(reversed(shape), reversed(target), strict=False)
    )

"""Validate a writer's input: the features of a new dataset, and each frame."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smolact.datasets.format import DEFAULT_FEATURES, IMAGE_DTYPES, Feature
from smolact.datasets.stats import LARGEST
from smolact.datasets.tables import ARROW_TYPES
from smolact.errors import ConfigError, FeatureError, did_you_mean
from smolact.types import TASK

AXES = ("height", "width", "channels")


def check_features(features: Mapping[str, Feature | Mapping[str, Any]]) -> dict[str, Feature]:
    """The validated features of a new dataset, without the default ones; cameras as (H, W, 3).

    Raises:
        ConfigError: a name, dtype or shape is not allowed.
    """
    checked = {}
    for name, value in features.items():
        if name in DEFAULT_FEATURES:
            continue  # allows another dataset's features
        feature = value if isinstance(value, Feature) else _parse_feature(name, value)
        _check_name(name)
        dtypes = (*IMAGE_DTYPES, *ARROW_TYPES)
        if feature.dtype not in dtypes:
            raise ConfigError(
                f"Feature '{name}' has the dtype '{feature.dtype}'; known are {', '.join(dtypes)}."
                f"{did_you_mean(feature.dtype, dtypes)}"
            )
        if (
            not feature.shape
            or len(feature.shape) > 5
            or any(type(n) is not int or n < 1 for n in feature.shape)
        ):
            raise ConfigError(
                f"Feature '{name}' has the shape {feature.shape}: expected one to five sizes, each 1 or more; a "
                "single number is (1,)."
            )
        if feature.is_image:
            if len(feature.shape) != 3 or feature.image_shape[0] != 3 or feature.is_depth:
                raise ConfigError(
                    f"Camera '{name}' has the shape {feature.shape}{' and is marked as depth' * feature.is_depth}: expected "
                    "(height, width, 3), in colour. Depth is not recorded."
                )
            _, height, width = feature.image_shape
            feature = Feature(feature.dtype, (height, width, 3), list(AXES), feature.info)
        if feature.dtype == "string" and feature.shape != (1,):
            raise ConfigError(f"Feature '{name}' is text, and has the shape {feature.shape}: expected (1,).")
        checked[name] = feature
    if not checked:
        raise ConfigError(
            "A dataset needs features: give at least one, such as 'observation.state' or 'action'."
        )
    return checked


def check_frame(frame: Mapping[str, Any], features: Mapping[str, Feature]) -> dict[str, Any]:
    """A frame's values as stored: arrays of each feature's shape and dtype, images (H, W, 3) uint8.

    Raises:
        FeatureError: a value is missing, unknown, not finite, or of another shape or dtype.
    """
    if frame.keys() != features.keys():
        missing, unknown = sorted(features.keys() - frame.keys()), sorted(frame.keys() - features.keys())
        problem = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"has {', '.join(unknown)}"] * bool(
            unknown
        )
        hint = did_you_mean(unknown[0], missing) if unknown else ""
        raise FeatureError(
            f"The frame {' and '.join(problem)}: the dataset was created with {', '.join(features)}.{hint}"
        )
    return {name: _check_value(name, frame[name], feature) for name, feature in features.items()}


def check_task(task: Any) -> None:
    """Raise a `FeatureError` unless `task` is non-empty text."""
    if not isinstance(task, str):
        raise FeatureError(
            f"The task must be text, like 'Pick up the cube.'; found {type(task).__name__} {task!r:.100}."
        )
    if not task.strip():
        raise FeatureError("The task is empty: say what the demonstration shows, like 'Pick up the cube.'")


def _check_value(name: str, value: Any, feature: Feature) -> Any:
    if feature.dtype == "string":
        if not isinstance(value, str):
            raise FeatureError(f"'{name}' must be text, found {type(value).__name__}.")
        return value
    array = np.asarray(value)
    if feature.is_image:
        return _check_image(name, array, feature)
    if array.shape != feature.shape and not (array.shape == () and feature.shape == (1,)):
        raise FeatureError(
            f"'{name}' has the shape {array.shape}, but the dataset was created with {feature.shape}."
        )
    dtype = np.dtype(feature.dtype)
    if not np.can_cast(array.dtype, dtype, casting="same_kind"):
        raise FeatureError(
            f"'{name}' has the dtype {array.dtype}, which does not go into {feature.dtype} without loss. Convert it, "
            "or create the dataset with that dtype."
        )
    stored = np.array(array, dtype=dtype).reshape(feature.shape)  # a copy: drivers reuse their buffers
    if dtype.kind == "f" and not (np.abs(stored.astype(np.float64)) <= LARGEST).all():
        raise FeatureError(
            f"'{name}' is not finite, or beyond {LARGEST:g} ({value!r:.200}). Check the sensor; such a frame can't be learned."
        )
    return stored


def _check_image(name: str, array: NDArray[Any], feature: Feature) -> NDArray[np.uint8]:
    height, width, _ = feature.shape
    if array.shape == (3, height, width) and array.shape != feature.shape:
        array = array.transpose(1, 2, 0)
    if array.shape != feature.shape:
        raise FeatureError(
            f"The image '{name}' has the shape {array.shape}, but the dataset was created with {feature.shape} "
            "(height, width, channels)."
        )
    if array.dtype == np.uint8:
        return np.array(array, order="C")
    if array.dtype.kind != "f":
        raise FeatureError(
            f"The image '{name}' has the dtype {array.dtype}: expected uint8, or floats in [0, 1]."
        )
    if not (array.min() >= 0 and array.max() <= 1):  # also rejects NaN
        raise FeatureError(
            f"The image '{name}' has floats from {array.min():g} to {array.max():g}: expected [0, 1], or uint8."
        )
    return np.ascontiguousarray(np.rint(array * 255).astype(np.uint8))


def _parse_feature(name: str, value: Any) -> Feature:
    try:
        return Feature(
            str(value["dtype"]), tuple(value["shape"]), value.get("names"), value.get("info") or {}
        )
    except (TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"Feature '{name}' needs a dtype and a shape; found {value!r:.200}.") from error


def _check_name(name: Any) -> None:
    bad = (
        not isinstance(name, str)
        or not name
        or name.startswith(".")
        or name == TASK
        or name.endswith("_is_pad")
    )
    if bad or any(letter in '/\\:*?"<>|' or not letter.isprintable() for letter in name):
        raise ConfigError(
            f"{name!r} can't name a feature: expected text without '/' and the like, such as 'observation.state'; "
            f"'{TASK}' and names that end in '_is_pad' are taken."
        )

"""Settings of random image transforms: LeRobot's `dataset.image_transforms`, with its names and defaults.

The command line reads this module, so it imports no torch; `smolact.datasets.transforms` applies the transforms.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn

from smolact.errors import ConfigError, did_you_mean
from smolact.settings import setting

FLAG = "--dataset.image_transforms"

Range = tuple[float, float]
"""The bounds of a parameter's uniform distribution."""


class Bounds(NamedTuple):
    """A parameter's limits and its value without effect: a single number d means `neutral` ± d."""

    neutral: float
    least: float
    most: float


_FACTOR = Bounds(1.0, 0.0, math.inf)
_FRACTION = Bounds(0.0, 0.0, 1.0)

TYPES: dict[str, dict[str, Bounds]] = {
    "Identity": {},
    "ColorJitter": {
        "brightness": _FACTOR,
        "contrast": _FACTOR,
        "saturation": _FACTOR,
        "hue": Bounds(0.0, -0.5, 0.5),
    },
    "SharpnessJitter": {"sharpness": _FACTOR},
    "RandomAffine": {"degrees": Bounds(0.0, -math.inf, math.inf), "translate": _FRACTION},
}
"""Transform type to the `kwargs` that it takes."""

_REQUIRED = {"SharpnessJitter": "sharpness", "RandomAffine": "degrees"}


@dataclass
class ImageTransformConfig:
    """One transform: its sampling weight, type and parameter ranges.

    `kwargs` maps a parameter to [low, high], or to d for ±d around no change; `translate` is the largest shift, as a fraction of
    [width, height].
    """

    weight: float = 1.0
    type: str = "Identity"
    kwargs: dict[str, Any] = field(default_factory=dict)

    def ranges(self, name: str = "") -> dict[str, Range]:
        """The range of each parameter; `translate` becomes `translate_x` and `translate_y`.

        Args:
            name: the transform's name, for error messages.

        Raises:
            ConfigError: an unknown type, an unknown or missing parameter, or an invalid range.
        """
        where = f"{FLAG}.tfs: '{name or self.type}'"
        if self.type not in TYPES:
            raise ConfigError(
                f"{where} has the type '{self.type}', which is none of {', '.join(TYPES)}."
                f"{did_you_mean(self.type, TYPES)} Take one of these, or leave it out."
            )
        allowed = TYPES[self.type]
        kwargs = {key: value for key, value in self.kwargs.items() if value is not None}
        for key in kwargs.keys() - allowed.keys():
            takes = f"takes {', '.join(allowed)}" if allowed else "takes none"
            raise ConfigError(
                f"{where} has '{key}' in its kwargs; {self.type} {takes}.{did_you_mean(key, allowed)}"
            )
        required = _REQUIRED.get(self.type)
        if required is not None and required not in kwargs:
            raise ConfigError(
                f"{where} lacks '{required}': {self.type} needs kwargs: {{{required}: [low, high]}}."
            )
        ranges: dict[str, Range] = {}
        for key, bounds in allowed.items():
            if key in kwargs and key == "translate":
                x, y = _pair(kwargs[key], f"{where}: {key}", bounds, ordered=False)
                ranges |= {"translate_x": (-x, x), "translate_y": (-y, y)}
            elif key in kwargs:
                ranges[key] = _range(kwargs[key], f"{where}: {key}", bounds)
        return ranges


def default_transforms() -> dict[str, ImageTransformConfig]:
    """LeRobot's six transforms, in the order of application."""
    jitter = {
        "brightness": [0.8, 1.2],
        "contrast": [0.8, 1.2],
        "saturation": [0.5, 1.5],
        "hue": [-0.05, 0.05],
    }
    return {
        **{name: ImageTransformConfig(1.0, "ColorJitter", {name: ends}) for name, ends in jitter.items()},
        "sharpness": ImageTransformConfig(1.0, "SharpnessJitter", {"sharpness": [0.5, 1.5]}),
        "affine": ImageTransformConfig(
            1.0, "RandomAffine", {"degrees": [-5.0, 5.0], "translate": [0.05, 0.05]}
        ),
    }


@dataclass
class ImageTransformsConfig:
    """Random image transforms in training, validated at construction if enabled.

    Raises:
        ConfigError: a transform is invalid, or none can be selected.
    """

    enable: bool = setting(False, "Change the camera images of each training sample at random.")
    max_num_transforms: int = setting(3, "How many of the transforms each image gets.")
    random_order: bool = setting(False, "Apply them in a random order, not in that of `tfs`.")
    tfs: dict[str, ImageTransformConfig] = setting(
        default_transforms,
        "The transforms to choose from, as {name: {weight: 1, type: ColorJitter, kwargs: {brightness: [0.8, 1.2]}}}. "
        "Types: ColorJitter (brightness, contrast, saturation, hue), SharpnessJitter (sharpness), RandomAffine "
        "(degrees, translate). See them with `smolact dataset preview-transforms`.",
    )

    def __post_init__(self) -> None:
        """Validate enabled transforms; a LeRobot file may list unsupported ones."""
        if self.enable:
            self.ranges()

    def ranges(self) -> dict[str, dict[str, Range]]:
        """The parameter ranges of each selectable transform; the errors are those of the class."""
        if self.max_num_transforms < 1:
            raise ConfigError(
                f"{FLAG}.max_num_transforms={self.max_num_transforms} is too small: it must be 1 or more. To leave the "
                f"images as they are, give {FLAG}.enable=false."
            )
        for name, transform in self.tfs.items():
            if not 0 <= transform.weight < math.inf:
                raise ConfigError(
                    f"{FLAG}.tfs: '{name}' has the weight {transform.weight}: it must be 0 (never chosen) or more."
                )
        ranges = {
            name: transform.ranges(name) for name, transform in self.tfs.items() if transform.weight > 0
        }
        if not ranges:
            raise ConfigError(
                f"{FLAG}.tfs has no transform of a weight above 0. Add one, or give {FLAG}.enable=false."
            )
        return ranges


def _range(value: Any, where: str, bounds: Bounds) -> Range:
    if not _is_number(value):
        return _pair(value, where, bounds)
    if value < 0:
        _raise_invalid(value, where, bounds)
    low = bounds.neutral - value
    # A factor's range ends at 0: 1 ± 1.5 is [0, 2.5], as in torchvision. A hue's does not.
    return _pair([max(low, 0.0) if bounds is _FACTOR else low, bounds.neutral + value], where, bounds)


def _pair(value: Any, where: str, bounds: Bounds, *, ordered: bool = True) -> Range:
    if not isinstance(value, (list, tuple)) or len(value) != 2 or not all(map(_is_number, value)):
        _raise_invalid(value, where, bounds, ordered)
    low, high = float(value[0]), float(value[1])
    if not all(bounds.least <= end <= bounds.most for end in (low, high)) or (ordered and low > high):
        _raise_invalid(value, where, bounds, ordered)
    return low, high


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _raise_invalid(value: Any, where: str, bounds: Bounds, ordered: bool = True) -> NoReturn:
    limits: Mapping[bool, str] = {True: "", False: f", from {bounds.least:g} to {bounds.most:g}"}
    expected = "a number, or [low, high] with low ≤ high" if ordered else "[share of width, share of height]"
    raise ConfigError(f"{where} is {value!r:.100}: expected {expected}{limits[bounds.least == -math.inf]}.")

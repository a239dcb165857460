"""Random image transforms for training, equal to torchvision's without needing it.

Each function takes images (…, 3, H, W), uint8 or float32 in [0, 1], and returns new ones of the same dtype.
`ImageTransforms` samples transforms from a generator; with one generator per sample, the result does not depend on which
worker or process loads that sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Generator, Tensor
from torch.nn import functional

from smolact.datasets.transforms_config import ImageTransformsConfig, Range
from smolact.errors import FeatureError

_LUMA = (0.2989, 0.587, 0.114)  # ITU-R 601, to torchvision's four digits


def adjust_brightness(image: Tensor, factor: float) -> Tensor:
    """Multiply by `factor`: 0 is black, 1 changes nothing."""
    return _like(image, image * float(factor))  # an integer would stay uint8 and wrap around


def adjust_contrast(image: Tensor, factor: float) -> Tensor:
    """Blend with the mean of each image's grayscale version: 0 is all gray, 1 changes nothing."""
    return _blend(image, _grayscale(image).mean((-3, -2, -1), keepdim=True), factor)


def adjust_saturation(image: Tensor, factor: float) -> Tensor:
    """Blend with the grayscale version: 0 is grayscale, 1 changes nothing."""
    return _blend(image, _grayscale(image), factor)


def adjust_hue(image: Tensor, shift: float) -> Tensor:
    """Rotate the hue by `shift` turns, from -0.5 to 0.5; lightness (max) and chroma (max − min) stay."""
    red, green, blue = (image if image.is_floating_point() else image * (1 / 255)).unbind(-3)
    high = torch.maximum(torch.maximum(red, green), blue)
    chroma = high - torch.minimum(torch.minimum(red, green), blue)
    divisor = torch.where(chroma == 0, 1.0, chroma)
    # The hue in sixths of a turn: red 0, green 2, blue 4. It is arbitrary where chroma is 0.
    sixths = torch.where(
        high == red,
        (green - blue) / divisor,
        torch.where(high == green, (blue - red) / divisor + 2, (red - green) / divisor + 4),
    )
    sixths = sixths.add_(6 * shift)
    sixths = sixths.sub_((sixths / 6).floor_().mul_(6))  # in [0, 6)
    # Each channel's distance below the maximum, in chromas: ramps that are 0 within a sixth of the channel's own hue.
    offsets = (
        (2 - (sixths - 3).abs_()).clamp_(0, 1),
        ((sixths - 2).abs_().sub_(1)).clamp_(0, 1),
        ((sixths - 4).abs_().sub_(1)).clamp_(0, 1),
    )
    rotated = torch.stack([high - chroma * offset for offset in offsets], dim=-3)
    # torchvision converts to uint8 by the factor 255.999, rounding down.
    return rotated if image.is_floating_point() else rotated.mul_(255.999).to(torch.uint8)


def adjust_sharpness(image: Tensor, factor: float) -> Tensor:
    """Blend with a blurred version (3 × 3, center weight 5, neighbors 1): 0 is blurred, 1 changes nothing.

    The border pixels are unchanged.
    """
    if min(image.shape[-2:]) < 3:
        return image.clone()
    sharp = image.to(torch.float32, copy=True)
    inner = sharp[..., 1:-1, 1:-1]
    rows = sharp[..., :-2, :] + sharp[..., 1:-1, :] + sharp[..., 2:, :]
    blurred = (rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]).add_(inner, alpha=4).div_(13)
    if not image.is_floating_point():
        blurred.round_()
    inner.add_(blurred.sub_(inner), alpha=1 - factor)
    return _like(image, sharp)


def affine(image: Tensor, degrees: float, translate: tuple[int, int] = (0, 0)) -> Tensor:
    """Rotate clockwise about the center, then shift by `translate` (x, y) pixels; nearest-neighbor, black outside."""
    height, width = image.shape[-2:]
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    # The source of each output pixel, in coordinates relative to the image center.
    x = torch.arange(width, device=image.device) - ((width - 1) / 2 + translate[0])
    y = (torch.arange(height, device=image.device) - ((height - 1) / 2 + translate[1]))[:, None]
    columns = (cosine * x + sine * y).add_((width - 1) / 2).round_().to(torch.int32)
    rows = (cosine * y - sine * x).add_((height - 1) / 2).round_().to(torch.int32)
    is_inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    source = torch.where(is_inside, rows * width + columns, height * width).flatten().to(torch.int64)
    with_black = functional.pad(image.flatten(-2), (0, 1))  # one extra pixel, for sources outside the image
    return with_black.gather(-1, source.expand(*image.shape[:-2], -1)).reshape(image.shape)


def _grayscale(image: Tensor) -> Tensor:
    red, green, blue = image.unbind(-3)
    gray = (red * _LUMA[0]).add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2]).unsqueeze(-3)
    return gray if image.is_floating_point() else gray.floor_()


def _blend(image: Tensor, other: Tensor, factor: float) -> Tensor:
    return _like(image, (image * float(factor)).add_(other, alpha=1 - factor))


def _like(image: Tensor, values: Tensor) -> Tensor:
    """Clamp `values` (in place) to the range of `image` and convert to its dtype; integers are truncated, as in torchvision."""
    return values.clamp_(0, 1 if image.is_floating_point() else 255).to(image.dtype)


_ADJUST: dict[str, Callable[[Tensor, float], Tensor]] = {
    "brightness": adjust_brightness,
    "contrast": adjust_contrast,
    "saturation": adjust_saturation,
    "hue": adjust_hue,
    "sharpness": adjust_sharpness,
}


class SampledTransform(NamedTuple):
    """A sampled transform: its name in the configuration and its parameter values, in order."""

    name: str
    values: Mapping[str, float]


class ImageTransforms:
    """Randomly chosen transforms, weighted, with values sampled from their ranges.

    Args:
        config: the configuration; its `enable` is ignored here.

    Raises:
        ConfigError: the configuration is invalid.
    """

    def __init__(self, config: ImageTransformsConfig) -> None:
        self.ranges: dict[str, dict[str, Range]] = config.ranges()
        self.random_order = config.random_order
        self._names = list(self.ranges)
        self._count = min(config.max_num_transforms, len(self._names))
        self._weights = torch.tensor([config.tfs[name].weight for name in self._names], dtype=torch.float64)

    def __call__(self, image: Tensor, generator: Generator) -> Tensor:
        """A transformed copy of `image`; all frames of a (T, 3, H, W) clip are transformed alike.

        Args:
            image: (…, 3, H, W), uint8, or float32 in [0, 1].
            generator: the source of all randomness.

        Raises:
            FeatureError: `image` has another shape or dtype.
        """
        if image.dtype not in (torch.uint8, torch.float32) or image.ndim < 3 or image.shape[-3] != 3:
            raise FeatureError(
                f"Image transforms take color images (…, 3, height, width) of uint8 or float32, found "
                f"{tuple(image.shape)} of {str(image.dtype).removeprefix('torch.')}. Leave this camera out, or give "
                "--dataset.image_transforms.enable=false."
            )
        for sampled in self.draw(generator):
            image = apply(image, sampled.values)
        return image

    def draw(self, generator: Generator) -> list[SampledTransform]:
        """Sample transforms and their values, in the order of application."""
        chosen = torch.multinomial(self._weights, self._count, generator=generator).tolist()
        if not self.random_order:
            chosen.sort()
        return [self._sample_values(self._names[number], generator) for number in chosen]

    def _sample_values(self, name: str, generator: Generator) -> SampledTransform:
        ranges = list(self.ranges[name].items())
        order = torch.randperm(len(ranges), generator=generator).tolist()
        fractions = torch.rand(len(ranges), generator=generator, dtype=torch.float64).tolist()
        return SampledTransform(name, {ranges[i][0]: lerp(ranges[i][1], fractions[i]) for i in order})


def lerp(bounds: Range, fraction: float) -> float:
    """The value at `fraction` of the way from the low end to the high end."""
    low, high = bounds
    return low + (high - low) * fraction


def apply(image: Tensor, values: Mapping[str, float]) -> Tensor:
    """Apply one transform with these parameter values: `brightness`, …, or `degrees` and `translate_x`, `translate_y`.

    Shifts are fractions of the image's width and height, rounded to whole pixels.
    """
    for name, value in values.items():
        if name in _ADJUST:
            image = _ADJUST[name](image, value)
    if "degrees" in values:
        height, width = image.shape[-2:]
        shift = round(values.get("translate_x", 0.0) * width), round(values.get("translate_y", 0.0) * height)
        image = affine(image, values["degrees"], shift)
    return image

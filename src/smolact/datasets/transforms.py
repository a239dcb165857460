"""Random changes to training images, equal to torchvision's, which is not needed.

Functions first: each takes images (…, 3, H, W), uint8 or float32 in [0, 1], and returns new ones of the same kind. Then
`ImageTransforms`, which draws what to apply from a generator: with a sample's own, it never matters which worker, or
which process of how many, loads that sample.
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

_LUMA = (0.2989, 0.587, 0.114)  # ITU-R 601, with torchvision's four digits


def adjust_brightness(image: Tensor, factor: float) -> Tensor:
    """Multiply by `factor`: 0 is black, 1 changes nothing."""
    return _like(image, image * float(factor))  # an integer would stay uint8 and wrap around


def adjust_contrast(image: Tensor, factor: float) -> Tensor:
    """Move away from the mean of each image's grey version: 0 is all grey, 1 changes nothing."""
    return _blend(image, _grey(image).mean((-3, -2, -1), keepdim=True), factor)


def adjust_saturation(image: Tensor, factor: float) -> Tensor:
    """Move away from the grey version: 0 is that version, 1 changes nothing."""
    return _blend(image, _grey(image), factor)


def adjust_hue(image: Tensor, shift: float) -> Tensor:
    """Turn the hue by `shift` turns, from -0.5 to 0.5; lightness (max) and chroma (max − min) stay."""
    red, green, blue = (image if image.is_floating_point() else image * (1 / 255)).unbind(-3)
    high = torch.maximum(torch.maximum(red, green), blue)
    chroma = high - torch.minimum(torch.minimum(red, green), blue)
    divisor = torch.where(chroma == 0, 1.0, chroma)
    # The hue in sixths of a turn: red 0, green 2, blue 4. What has no chroma has no hue either: any will do.
    sixths = torch.where(
        high == red,
        (green - blue) / divisor,
        torch.where(high == green, (blue - red) / divisor + 2, (red - green) / divisor + 4),
    )
    sixths = sixths.add_(6 * shift)
    sixths = sixths.sub_((sixths / 6).floor_().mul_(6))  # in [0, 6)
    # How far each channel is below the highest, in chromas: three ramps, each 0 within a sixth of its own hue.
    below = (
        (2 - (sixths - 3).abs_()).clamp_(0, 1),
        ((sixths - 2).abs_().sub_(1)).clamp_(0, 1),
        ((sixths - 4).abs_().sub_(1)).clamp_(0, 1),
    )
    turned = torch.stack([high - chroma * ramp for ramp in below], dim=-3)
    # 255.999 and a floor: the scale by which torchvision returns to uint8.
    return turned if image.is_floating_point() else turned.mul_(255.999).to(torch.uint8)


def adjust_sharpness(image: Tensor, factor: float) -> Tensor:
    """Move away from a blurred version (3 × 3, the centre five times its neighbours): 0 is blurred, 1 changes nothing.

    The outermost pixels stay as they are.
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
    """Turn clockwise about the centre, then shift by `translate` (x, y) pixels; each pixel is its nearest, or black."""
    height, width = image.shape[-2:]
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    # Where each pixel of the result comes from. Coordinates have their origin at the image's centre.
    x = torch.arange(width, device=image.device) - ((width - 1) / 2 + translate[0])
    y = (torch.arange(height, device=image.device) - ((height - 1) / 2 + translate[1]))[:, None]
    columns = (cosine * x + sine * y).add_((width - 1) / 2).round_().to(torch.int32)
    rows = (cosine * y - sine * x).add_((height - 1) / 2).round_().to(torch.int32)
    is_inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    source = torch.where(is_inside, rows * width + columns, height * width).flatten().to(torch.int64)
    with_black = functional.pad(image.flatten(-2), (0, 1))  # one more pixel, for what comes from outside
    return with_black.gather(-1, source.expand(*image.shape[:-2], -1)).reshape(image.shape)


def _grey(image: Tensor) -> Tensor:
    red, green, blue = image.unbind(-3)
    grey = (red * _LUMA[0]).add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2]).unsqueeze(-3)
    return grey if image.is_floating_point() else grey.floor_()


def _blend(image: Tensor, other: Tensor, factor: float) -> Tensor:
    return _like(image, (image * float(factor)).add_(other, alpha=1 - factor))


def _like(image: Tensor, values: Tensor) -> Tensor:
    """`values`, which are new, clamped to what `image` can hold; integers are cut off, as torchvision does."""
    return values.clamp_(0, 1 if image.is_floating_point() else 255).to(image.dtype)


_ADJUST: dict[str, Callable[[Tensor, float], Tensor]] = {
    "brightness": adjust_brightness,
    "contrast": adjust_contrast,
    "saturation": adjust_saturation,
    "hue": adjust_hue,
    "sharpness": adjust_sharpness,
}


class Drawn(NamedTuple):
    """A transform that was chosen: its name in the configuration, and the values of its parameters, in their order."""

    name: str
    values: Mapping[str, float]


class ImageTransforms:
    """Some of the configured transforms, chosen by weight, with values drawn from their ranges.

    Args:
        config: its `enable` does not matter here: who makes this wants it.

    Raises:
        ConfigError: the configuration can't work.
    """

    def __init__(self, config: ImageTransformsConfig) -> None:
        self.ranges: dict[str, dict[str, Range]] = config.ranges()
        self.random_order = config.random_order
        self._names = list(self.ranges)
        self._count = min(config.max_num_transforms, len(self._names))
        self._weights = torch.tensor([config.tfs[name].weight for name in self._names], dtype=torch.float64)

    def __call__(self, image: Tensor, generator: Generator) -> Tensor:
        """A changed copy of `image`; (T, 3, H, W) is a film, whose frames are all changed alike.

        Args:
            image: (…, 3, H, W), uint8, or float32 in [0, 1].
            generator: where all randomness comes from.

        Raises:
            FeatureError: `image` is something else.
        """
        if image.dtype not in (torch.uint8, torch.float32) or image.ndim < 3 or image.shape[-3] != 3:
            raise FeatureError(
                f"Image transforms take color images (…, 3, height, width) of uint8 or float32, found "
                f"{tuple(image.shape)} of {str(image.dtype).removeprefix('torch.')}. Leave this camera out, or give "
                "--dataset.image_transforms.enable=false."
            )
        for drawn in self.draw(generator):
            image = apply(image, drawn.values)
        return image

    def draw(self, generator: Generator) -> list[Drawn]:
        """Choose transforms and their values, in the order in which they are to be applied."""
        chosen = torch.multinomial(self._weights, self._count, generator=generator).tolist()
        if not self.random_order:
            chosen.sort()
        return [self._draw_values(self._names[number], generator) for number in chosen]

    def _draw_values(self, name: str, generator: Generator) -> Drawn:
        ranges = list(self.ranges[name].items())
        order = torch.randperm(len(ranges), generator=generator).tolist()
        shares = torch.rand(len(ranges), generator=generator, dtype=torch.float64).tolist()
        return Drawn(name, {ranges[i][0]: between(ranges[i][1], shares[i]) for i in order})


def between(ends: Range, share: float) -> float:
    """The value that is `share` of the way from the low end to the high one."""
    low, high = ends
    return low + (high - low) * share


def apply(image: Tensor, values: Mapping[str, float]) -> Tensor:
    """One transform with these values of its parameters: `brightness`, …, or `degrees` and `translate_x`, `translate_y`.

    Shifts are shares of the image's width and height, rounded to whole pixels.
    """
    for name, value in values.items():
        if name in _ADJUST:
            image = _ADJUST[name](image, value)
    if "degrees" in values:
        height, width = image.shape[-2:]
        shift = round(values.get("translate_x", 0.0) * width), round(values.get("translate_y", 0.0) * height)
        image = affine(image, values["degrees"], shift)
    return image

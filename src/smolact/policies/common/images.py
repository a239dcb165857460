"""Preprocessing of images for a vision tower."""

# I images.

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor


def resize_with_pad(images: Tensor, width: int, height: int) -> Tensor:
    """Scale images (I, 3, h, w) to fit width × height, keep their aspect ratio, and pad the left and the top with black (0)."""
    if images.shape[-2:] == (height, width):
        return images
    ratio = max(images.shape[-1] / width, images.shape[-2] / height)
    inner = int(images.shape[-2] / ratio), int(images.shape[-1] / ratio)
    resized = F.interpolate(images, size=inner, mode="bilinear", align_corners=False)
    return F.pad(resized, (width - inner[1], 0, height - inner[0], 0))


def to_float(images: Tensor) -> Tensor:
    """Convert uint8 in 0 … 255 to float32 in [0, 1]; floats stay as they are."""
    return images.float() / 255 if images.dtype == torch.uint8 else images

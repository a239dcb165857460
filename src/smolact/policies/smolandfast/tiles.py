"""Image splitting as in SmolVLM: a large image as tiles of the vision tower's size, followed by the whole image.

The result equals the reference processor's to the bit: Lanczos resampling of 8-bit images by Pillow.
Source: Marafioti et al. 2025, "SmolVLM: Redefining small and efficient multimodal models".
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Picture = NDArray[np.uint8]


@dataclass(frozen=True)
class Tiles:
    """The parts of an image, (rows · columns + 1, H, W, 3) uint8, row by row and last the whole; (0, 0): only the whole."""

    pictures: Picture
    rows: int
    columns: int


def split(picture: Picture, tile: int, longest_edge: int) -> Tiles:
    """Split an image (H, W, 3) into tiles.

    Args:
        tile: the side of a tile, the vision tower's input size.
        longest_edge: the image is first scaled so that its longer side is this, and then stretched to whole tiles.
    """
    height, width = _scaled_size(picture.shape[0], picture.shape[1], longest_edge)
    fitted = _resize(_resize(picture, height, width), *_tiled_size(height, width, tile))
    rows, columns = grid(picture.shape[0], picture.shape[1], tile, longest_edge)
    if not rows:
        return Tiles(fitted[None], 0, 0)
    tiles = fitted.reshape(rows, tile, columns, tile, 3).swapaxes(1, 2).reshape(-1, tile, tile, 3)
    return Tiles(np.concatenate([tiles, _resize(fitted, tile, tile)[None]]), rows, columns)


def grid(height: int, width: int, tile: int, longest_edge: int) -> tuple[int, int]:
    """Return rows and columns of the tiles that `split` makes of an image of that size; (0, 0) for the whole image only."""
    height, width = _tiled_size(*_scaled_size(height, width, longest_edge), tile)
    rows, columns = height // tile, width // tile
    return (rows, columns) if rows * columns > 1 else (0, 0)


def _scaled_size(height: int, width: int, longest: int) -> tuple[int, int]:
    """Return the size whose longer side is `longest`, in even numbers."""
    ratio = width / height
    height, width = (int(longest / ratio), longest) if width >= height else (longest, int(longest * ratio))
    return max(height + height % 2, 1), max(width + width % 2, 1)


def _tiled_size(height: int, width: int, tile: int) -> tuple[int, int]:
    """Return the size in whole tiles; the longer side is rounded up first, and the other follows its shape."""
    ratio = width / height
    if width >= height:
        width = math.ceil(width / tile) * tile
        return math.ceil(int(width / ratio) / tile) * tile, width
    height = math.ceil(height / tile) * tile
    return height, math.ceil(int(height * ratio) / tile) * tile


def _resize(picture: Picture, height: int, width: int) -> Picture:
    if picture.shape[:2] == (height, width):
        return picture
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS))

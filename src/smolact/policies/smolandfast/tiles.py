"""Image splitting as SmolVLM does it: a large image as tiles of the vision tower's size, and once more whole.

Equal to the reference processor to the bit: Lanczos resampling of 8-bit pictures by Pillow.
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
    """The parts of an image, (rows · columns + 1, H, W, 3) uint8, row by row and last the whole; no grid: only the whole."""

    pictures: Picture
    rows: int
    columns: int


def split(picture: Picture, tile: int, longest_edge: int) -> Tiles:
    """Cut an image (H, W, 3) into tiles.

    Args:
        picture: the image.
        tile: the side of a tile, which is what the vision tower takes.
        longest_edge: the image is first scaled so that its longer side is this, and then stretched to whole tiles.
    """
    height, width = _fitted(picture.shape[0], picture.shape[1], longest_edge)
    fitted = _resized(_resized(picture, height, width), *_whole_tiles(height, width, tile))
    rows, columns = grid(picture.shape[0], picture.shape[1], tile, longest_edge)
    if not rows:
        return Tiles(fitted[None], 0, 0)
    cut = fitted.reshape(rows, tile, columns, tile, 3).swapaxes(1, 2).reshape(-1, tile, tile, 3)
    return Tiles(np.concatenate([cut, _resized(fitted, tile, tile)[None]]), rows, columns)


def grid(height: int, width: int, tile: int, longest_edge: int) -> tuple[int, int]:
    """Rows and columns of the tiles that `split` makes of an image of that size; (0, 0) where it is shown whole only."""
    height, width = _whole_tiles(*_fitted(height, width, longest_edge), tile)
    rows, columns = height // tile, width // tile
    return (rows, columns) if rows * columns > 1 else (0, 0)


def _fitted(height: int, width: int, longest: int) -> tuple[int, int]:
    """The size whose longer side is `longest`, in even numbers."""
    ratio = width / height
    height, width = (int(longest / ratio), longest) if width >= height else (longest, int(longest * ratio))
    return max(height + height % 2, 1), max(width + width % 2, 1)


def _whole_tiles(height: int, width: int, tile: int) -> tuple[int, int]:
    """The size in whole tiles; the longer side is rounded up first, and the other follows its shape."""
    ratio = width / height
    if width >= height:
        width = math.ceil(width / tile) * tile
        return math.ceil(int(width / ratio) / tile) * tile, width
    height = math.ceil(height / tile) * tile
    return height, math.ceil(int(height * ratio) / tile) * tile


def _resized(picture: Picture, height: int, width: int) -> Picture:
    if picture.shape[:2] == (height, width):
        return picture
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS))

"""Renderer of the tabletop in plain numpy, without a display or OpenGL.

Every moving object is a rounded square (the pusher: all corner), given by its signed distance d at each pixel's centre,
negative inside, in table sides. `0.5 - d * size`, clipped to [0, 1], is the pixel's coverage, hence anti-aliasing at any size.
Table and zones are drawn once per size; a frame computes only patches around shapes that moved. The colour axis comes first:
numpy is slow where the last axis has 3 entries.
"""

from __future__ import annotations

from functools import lru_cache
from math import cos, sin
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from smolact.envs.tabletop_scene import BLOCK_SIDE, COLORS, PUSHER_RADIUS, ZONE_RADIUS, ZONES, TableState

Image = NDArray[np.uint8]
Floats = NDArray[np.float32]


def _color(red: int, green: int, blue: int) -> Floats:
    return np.array((red, green, blue), np.float32)[:, None, None]


_TABLE, _ZONE, _ZONE_RIM = _color(238, 232, 222), _color(222, 213, 198), _color(187, 174, 152)
_RIM = 0.012  # width of the darker edge of blocks and zones
_CORNER = 0.018  # radius of a block's corners


class _Shape(NamedTuple):
    """A shape without its pose: half its straight side, corner radius, rim width, two colours (3, 1, 1)."""

    half: float
    corner: float
    rim: float
    edge: Floats
    face: Floats


_PUSHER = "pusher"
_SHAPES = {
    name: _Shape(BLOCK_SIDE / 2 - _CORNER, _CORNER, _RIM, 0.7 * _color(*rgb), _color(*rgb))
    for name, rgb in COLORS.items()
} | {_PUSHER: _Shape(0.0, PUSHER_RADIUS, PUSHER_RADIUS / 2, _color(45, 48, 56), _color(214, 218, 224))}


def draw_table(state: TableState, size: int) -> Image:
    """Draw the table seen from above: (size, size, 3) uint8, RGB. Blocks in the order of `state`, the pusher on top."""
    image: Image = _empty_table(size).copy()
    planes = image.transpose(2, 0, 1)
    for name, x, y, angle in (*state.blocks, (_PUSHER, *state.pusher, 0.0)):
        rows, columns, background, foreground = _draw_shape(name, x, y, angle, size)
        patch = planes[:, rows, columns]
        patch[...] = patch * background + foreground
    return image


@lru_cache(maxsize=64)  # most blocks rest most of the time
def _draw_shape(
    name: str, x: float, y: float, angle: float, size: int
) -> tuple[slice, slice, Floats, Floats]:
    """Return a shape's rows and columns, the background's factor (h, w), and the summand (3, h, w)."""
    shape = _SHAPES[name]
    reach = shape.half * 2**0.5 + shape.corner + 1 / size
    columns, offset_x = _pixels_within(x, reach, size)
    rows, offset_y = _pixels_within(y, reach, size)
    offset_y = offset_y[:, None]

    out_x = np.abs(cos(angle) * offset_x + sin(angle) * offset_y) - shape.half
    out_y = np.abs(cos(angle) * offset_y - sin(angle) * offset_x) - shape.half
    outside = np.sqrt(np.maximum(out_x, 0.0) ** 2 + np.maximum(out_y, 0.0) ** 2)
    distance = outside + np.minimum(np.maximum(out_x, out_y), 0.0) - shape.corner
    coverage = _coverage(distance, size)
    color = shape.edge + _coverage(distance + shape.rim, size) * (shape.face - shape.edge)
    return rows, columns, 1.0 - coverage, coverage * color + 0.5  # + 0.5: the cast to uint8 truncates


def _pixels_within(position: float, reach: float, size: int) -> tuple[slice, Floats]:
    """Return one axis's pixels within `reach` of a position, and the offsets of their centres."""
    pixels = slice(max(int((position - reach) * size), 0), min(int((position + reach) * size) + 1, size))
    offsets: Floats = _pixel_centres(size)[pixels] - np.float32(position)
    return pixels, offsets


def _coverage(distance: Floats, size: int) -> Floats:
    """Return the share of each pixel that the shape covers."""
    coverage: Floats = np.minimum(np.maximum(0.5 - distance * np.float32(size), 0.0), 1.0)
    return coverage


@lru_cache(maxsize=8)
def _pixel_centres(size: int) -> Floats:
    centres: Floats = (np.arange(size, dtype=np.float32) + 0.5) / np.float32(size)
    return centres


@lru_cache(maxsize=8)
def _empty_table(size: int) -> Image:
    centres = _pixel_centres(size)
    image = np.broadcast_to(_TABLE, (3, size, size))
    for x, y in ZONES.values():
        distance = np.hypot(centres - x, centres[:, None] - y) - ZONE_RADIUS
        image = image + _coverage(distance, size) * (_ZONE_RIM - image)
        image = image + _coverage(distance + _RIM, size) * (_ZONE - image)
    rows_first: Image = np.ascontiguousarray((image + 0.5).transpose(1, 2, 0).astype(np.uint8))
    return rows_first

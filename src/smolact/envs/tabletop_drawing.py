"""Draws the tabletop with numpy alone: no display, no GL.

Everything that moves is a rounded square (the pusher: one that is all corner), given by its signed distance d at each
pixel's centre, negative inside, in table sides. `0.5 - d * size`, clipped to [0, 1], is how much of the pixel it
covers, which is anti-aliasing at any size. Table and zones are drawn once a size; a frame then computes only the small
patches around the shapes, and only of those that moved. Colours come before rows and columns while computing: numpy is
slow where the last axis is a mere 3.
"""

from __future__ import annotations

from functools import lru_cache
from math import cos, sin
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from smolact.envs.tabletop_scene import BLOCK_SIDE, COLORS, PUSHER_RADIUS, ZONE_RADIUS, ZONES, TableState

Picture = NDArray[np.uint8]
Floats = NDArray[np.float32]


def _color(red: int, green: int, blue: int) -> Floats:
    return np.array((red, green, blue), np.float32)[:, None, None]


_TABLE, _ZONE, _ZONE_RIM = _color(238, 232, 222), _color(222, 213, 198), _color(187, 174, 152)
_RIM = 0.012  # width of the darker edge of blocks and zones
_CORNER = 0.018  # radius of a block's corners


class _Look(NamedTuple):
    """A shape but for its pose: half its straight side, its corners' radius, its rim's width, two colours (3, 1, 1)."""

    half: float
    corner: float
    rim: float
    edge: Floats
    face: Floats


_PUSHER = "pusher"
_LOOKS = {
    name: _Look(BLOCK_SIDE / 2 - _CORNER, _CORNER, _RIM, 0.7 * _color(*rgb), _color(*rgb))
    for name, rgb in COLORS.items()
} | {_PUSHER: _Look(0.0, PUSHER_RADIUS, PUSHER_RADIUS / 2, _color(45, 48, 56), _color(214, 218, 224))}


def draw_table(state: TableState, size: int) -> Picture:
    """The table seen from above: (size, size, 3) uint8, RGB. Blocks in the order of `state`, the pusher on top."""
    picture: Picture = _empty_table(size).copy()
    planes = picture.transpose(2, 0, 1)
    for name, x, y, angle in (*state.blocks, (_PUSHER, *state.pusher, 0.0)):
        rows, columns, below, paint = _draw_shape(name, x, y, angle, size)
        patch = planes[:, rows, columns]
        patch[...] = patch * below + paint
    return picture


@lru_cache(maxsize=64)  # most blocks lie still most of the time
def _draw_shape(
    name: str, x: float, y: float, angle: float, size: int
) -> tuple[slice, slice, Floats, Floats]:
    """The rows and columns of a shape's patch, what to multiply the picture by (h, w), and what to add (3, h, w)."""
    look = _LOOKS[name]
    reach = look.half * 2**0.5 + look.corner + 1 / size
    columns, away_x = _pixels_within(x, reach, size)
    rows, away_y = _pixels_within(y, reach, size)
    away_y = away_y[:, None]

    out_x = np.abs(cos(angle) * away_x + sin(angle) * away_y) - look.half
    out_y = np.abs(cos(angle) * away_y - sin(angle) * away_x) - look.half
    outside = np.sqrt(np.maximum(out_x, 0.0) ** 2 + np.maximum(out_y, 0.0) ** 2)
    distance = outside + np.minimum(np.maximum(out_x, out_y), 0.0) - look.corner
    covered = _coverage(distance, size)
    color = look.edge + _coverage(distance + look.rim, size) * (look.face - look.edge)
    return rows, columns, 1.0 - covered, covered * color + 0.5  # + 0.5: the cast to uint8 truncates


def _pixels_within(position: float, reach: float, size: int) -> tuple[slice, Floats]:
    """The pixels of one axis within `reach` of a position, and how far from it their centres are."""
    pixels = slice(max(int((position - reach) * size), 0), min(int((position + reach) * size) + 1, size))
    offsets: Floats = _pixel_centres(size)[pixels] - np.float32(position)
    return pixels, offsets


def _coverage(distance: Floats, size: int) -> Floats:
    """How much of each pixel the shape covers."""
    covered: Floats = np.minimum(np.maximum(0.5 - distance * np.float32(size), 0.0), 1.0)
    return covered


@lru_cache(maxsize=8)
def _pixel_centres(size: int) -> Floats:
    centres: Floats = (np.arange(size, dtype=np.float32) + 0.5) / np.float32(size)
    return centres


@lru_cache(maxsize=8)
def _empty_table(size: int) -> Picture:
    centres = _pixel_centres(size)
    picture = np.broadcast_to(_TABLE, (3, size, size))
    for x, y in ZONES.values():
        distance = np.hypot(centres - x, centres[:, None] - y) - ZONE_RADIUS
        picture = picture + _coverage(distance, size) * (_ZONE_RIM - picture)
        picture = picture + _coverage(distance + _RIM, size) * (_ZONE - picture)
    rows_first: Picture = np.ascontiguousarray((picture + 0.5).transpose(1, 2, 0).astype(np.uint8))
    return rows_first

"""Draws the tabletop with numpy alone: no display, no GL.

Everything that moves is a rounded square (the pusher: one that is all corner), given by its signed distance d at each
pixel's centre, negative inside, in table sides. `0.5 - d * size`, clipped to [0, 1], is how much of the pixel it
covers, which is anti-aliasing at any size. Table and zones are drawn once a size; a frame then computes only the small
patches that hold a shape, all at once: at 64 × 64 the calls into numpy cost more than the pixels do.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from smolact.envs.tabletop_scene import BLOCK_SIDE, COLORS, PUSHER_RADIUS, ZONE_RADIUS, ZONES, TableState

Picture = NDArray[np.uint8]
Floats = NDArray[np.float32]


def _color(red: int, green: int, blue: int) -> Floats:
    return np.array((red, green, blue), np.float32)


_TABLE, _ZONE, _ZONE_RIM = _color(238, 232, 222), _color(222, 213, 198), _color(187, 174, 152)
_RIM = 0.012  # width of the darker edge of blocks and zones
_CORNER = 0.018  # radius of a block's corners
_REACH = 0.5 * BLOCK_SIDE * 2**0.5  # from a block's centre to its corners; more than the pusher's radius


def _look(half: float, corner: float, rim: float, edge: Floats, face: Floats) -> Floats:
    """A shape but for its pose, (9,): half its straight side, its corners' radius, its rim's width, two colours."""
    return np.concatenate([np.array((half, corner, rim), np.float32), edge, face])


_BLOCK_LOOKS = {
    name: _look(BLOCK_SIDE / 2 - _CORNER, _CORNER, _RIM, np.float32(0.7) * _color(*rgb), _color(*rgb))
    for name, rgb in COLORS.items()
}
_PUSHER_LOOK = _look(0.0, PUSHER_RADIUS, PUSHER_RADIUS / 2, _color(45, 48, 56), _color(214, 218, 224))


def draw_table(state: TableState, size: int) -> Picture:
    """The table seen from above: (size, size, 3) uint8, RGB. Blocks in the order of `state`, the pusher on top."""
    picture: Picture = _empty_table(size).copy()
    planes = picture.transpose(2, 0, 1)
    corners, covered, color = _draw_shapes(state, size)
    below, paint = 1.0 - covered, covered * color + 0.5  # + 0.5: the cast to uint8 truncates
    width = covered.shape[-1]
    for number, (left, top) in enumerate(corners):
        patch = planes[:, top : top + width, left : left + width]
        patch[...] = patch * below[number] + paint[number]
    return picture


def _draw_shapes(state: TableState, size: int) -> tuple[list[list[int]], Floats, Floats]:
    """For each of N shapes its patch of w × w pixels: left top pixel, coverage (N, 1, w, w), colours (N, 3, w, w)."""
    looks = np.array([*(_BLOCK_LOOKS[block.color] for block in state.blocks), _PUSHER_LOOK])[..., None, None]
    half, corner, rim, edge, face = looks[:, 0:1], looks[:, 1:2], looks[:, 2:3], looks[:, 3:6], looks[:, 6:9]
    poses = np.array([*(block[1:] for block in state.blocks), (*state.pusher, 0.0)], np.float32)
    centre, angle = poses[:, :2], poses[:, 2, None, None, None]

    width = min(int(2 * _REACH * size) + 3, size)
    first = np.minimum(np.maximum((centre - _REACH) * size, 0), size - width).astype(np.int32)
    from_x, from_y = ((first + 0.5) / size - centre).astype(np.float32).T[..., None, None, None]
    steps = np.arange(width, dtype=np.float32) / np.float32(size)
    x, y = from_x + steps, from_y + steps[:, None]

    cos, sin = np.cos(angle), np.sin(angle)
    out_x, out_y = np.abs(cos * x + sin * y) - half, np.abs(cos * y - sin * x) - half
    outside = np.sqrt(np.maximum(out_x, 0.0) ** 2 + np.maximum(out_y, 0.0) ** 2)
    distance = outside + np.minimum(np.maximum(out_x, out_y), 0.0) - corner
    color = edge + _coverage(distance + rim, size) * (face - edge)
    return first.tolist(), _coverage(distance, size), color


def _coverage(distance: Floats, size: int) -> Floats:
    """How much of each pixel the shape covers."""
    covered: Floats = np.minimum(np.maximum(0.5 - distance * np.float32(size), 0.0), 1.0)
    return covered


@lru_cache(maxsize=8)
def _empty_table(size: int) -> Picture:
    centres = (np.arange(size, dtype=np.float32) + 0.5) / np.float32(size)
    picture = np.broadcast_to(_TABLE, (size, size, 3))
    for x, y in ZONES.values():
        distance = (np.hypot(centres - x, centres[:, None] - y) - ZONE_RADIUS)[..., None]
        picture = picture + _coverage(distance, size) * (_ZONE_RIM - picture)
        picture = picture + _coverage(distance + _RIM, size) * (_ZONE - picture)
    return (picture + 0.5).astype(np.uint8)

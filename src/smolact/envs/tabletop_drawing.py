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
    picture = _empty_table(size).copy()
    corners, covered, color = _draw_shapes(state, size)
    below, paint = 1.0 - covered, covered * color + 0.5  # + 0.5: the cast to uint8 truncates
    width = covered.shape[1]
    for number, (left, top) in enumerate(corners):
        patch = picture[top : top + width, left : left + width]
        patch[...] = patch * below[number] + paint[number]
    return picture


def _draw_shapes(state: TableState, size: int) -> tuple[list[list[int]], Floats, Floats]:
    """For each of N shapes its patch of w × w pixels: left top pixel, coverage (N, w, w, 1), colours (N, w, w, 3)."""
    poses = [block[1:] for block in state.blocks] + [(*state.pusher, 0.0)]
    looks = [_BLOCK_LOOKS[block.color] for block in state.blocks] + [_PUSHER_LOOK]
    where = np.array(poses, np.float32)
    half, corner, rim, *colors = np.array(looks).T[:, :, None, None]
    edge, face = np.stack(colors[:3], -1), np.stack(colors[3:], -1)

    width = min(int(2 * _REACH * size) + 3, size)
    first = np.clip((where[:, :2] - _REACH) * size, 0, size - width).astype(np.int64)
    x, y = ((first + 0.5) / size - where[:, :2]).astype(np.float32).T[:, :, None, None]
    steps = np.arange(width, dtype=np.float32) / np.float32(size)
    x, y = x + steps, y + steps[:, None]

    angle = where[:, 2, None, None]
    cos, sin = np.cos(angle), np.sin(angle)
    out_x, out_y = np.abs(cos * x + sin * y) - half, np.abs(cos * y - sin * x) - half
    outside = np.sqrt(np.maximum(out_x, 0.0) ** 2 + np.maximum(out_y, 0.0) ** 2)
    distance = outside + np.minimum(np.maximum(out_x, out_y), 0.0) - corner
    color = edge + _coverage(distance + rim, size) * (face - edge)
    return first.tolist(), _coverage(distance, size), color


def _coverage(distance: Floats, size: int) -> Floats:
    """How much of each pixel the shape covers, with a last axis of 1 for the colours."""
    covered: Floats = np.minimum(np.maximum(0.5 - distance * np.float32(size), 0.0), 1.0)[..., None]
    return covered


@lru_cache(maxsize=8)
def _empty_table(size: int) -> Picture:
    centres = (np.arange(size, dtype=np.float32) + 0.5) / np.float32(size)
    picture = np.broadcast_to(_TABLE, (size, size, 3))
    for x, y in ZONES.values():
        distance = np.hypot(centres - x, centres[:, None] - y) - ZONE_RADIUS
        picture = picture + _coverage(distance, size) * (_ZONE_RIM - picture)
        picture = picture + _coverage(distance + _RIM, size) * (_ZONE - picture)
    return (picture + 0.5).astype(np.uint8)

"""The tabletop's scene: objects, positions and physics.

Lengths are in table sides: (0, 0) is the top left corner of the image, x points right, y **down**, so a position times the
image size is a pixel. One control step is a tenth of a second.

The physics is pymunk's, without gravity: two joints of limited force hold each block to the table, which models dry friction.
The pusher is a body too, pulled by a joint of limited force, so an immovable obstacle stops it.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import hypot, inf
from typing import NamedTuple

import pymunk

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (214, 48, 49),
    "green": (39, 158, 76),
    "blue": (41, 98, 214),
    "yellow": (245, 200, 40),
    "purple": (128, 58, 176),
    "pink": (243, 140, 190),
}
"""Name to sRGB: six colours that stay distinct at 64 × 64 pixels and after a video codec."""

ZONES: dict[str, tuple[float, float]] = {
    "left": (0.16, 0.5),
    "right": (0.84, 0.5),
    "top": (0.5, 0.16),
    "bottom": (0.5, 0.84),
}
"""Name to centre of each place to which a block can be pushed."""

ZONE_RADIUS = 0.11
BLOCK_SIDE = 0.12
PUSHER_RADIUS = 0.04
CONTROL_HZ = 10
MAX_SPEED = 0.4  # of the pusher, in table sides per second
MAX_STEP = MAX_SPEED / CONTROL_HZ

_SUBSTEPS = 8
_BLOCK_MASS = 1.0
_SLIDING_FRICTION = 20.0  # force at which a block starts to slide; it then stops within 0.01 of the table
_TURNING_FRICTION = 0.8  # torque at which it starts to turn: about that friction over a square's area
_PUSHER_FORCE = 150.0  # enough for six blocks in a row, not enough to press one into another
_SURFACE_FRICTION = 0.6


class Block(NamedTuple):
    """A block: its colour, its centre, its angle in radians."""

    color: str
    x: float
    y: float
    angle: float


class TableState(NamedTuple):
    """Poses of all objects at one moment: the input of drawing, goals and experts."""

    pusher: tuple[float, float]
    blocks: tuple[Block, ...]

    def block(self, color: str) -> Block:
        """Return the block of that colour, which must be on the table."""
        return next(block for block in self.blocks if block.color == color)

    def distance_to(self, block: Block) -> float:
        """Return the distance from the pusher's centre to the block's."""
        return hypot(block.x - self.pusher[0], block.y - self.pusher[1])


class TableWorld:
    """The physics simulation; equal states and equal targets give bit-identical states."""

    def __init__(self, state: TableState) -> None:
        space = pymunk.Space()
        space.iterations = 10
        space.collision_slop = 1e-3  # pymunk's default is 0.1, here most of a block's side
        ground = space.static_body
        corners = [(0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)]
        for start, end in zip(corners, corners[1:] + corners[:1], strict=True):
            # Borders as thick as the table is wide: no force pushes a body through.
            outward = (start[1] - end[1], end[0] - start[0])
            shift = pymunk.Vec2d(*outward) * -0.5
            border = pymunk.Segment(ground, shift + start, shift + end, 0.5)
            border.friction = _SURFACE_FRICTION
            space.add(border)

        self._colors = [block.color for block in state.blocks]
        self._blocks = [self._add_block(space, block) for block in state.blocks]
        self._pusher = pymunk.Body(1.0, inf)
        self._pusher.position = state.pusher
        disc = pymunk.Circle(self._pusher, PUSHER_RADIUS)
        disc.friction = _SURFACE_FRICTION
        self._control_body = pymunk.Body(body_type=pymunk.Body.KINEMATIC)
        drive = pymunk.PivotJoint(self._control_body, self._pusher, (0, 0), (0, 0))
        drive.max_bias = 0.0  # only the control body's speed matters, not its position
        drive.max_force = _PUSHER_FORCE
        space.add(self._pusher, disc, self._control_body, drive)
        self._space = space

    @staticmethod
    def _add_block(space: pymunk.Space, block: Block) -> pymunk.Body:
        moment = pymunk.moment_for_box(_BLOCK_MASS, (BLOCK_SIDE, BLOCK_SIDE))
        body = pymunk.Body(_BLOCK_MASS, moment)
        body.position, body.angle = (block.x, block.y), block.angle
        shape = pymunk.Poly.create_box(body, (BLOCK_SIDE, BLOCK_SIDE))
        shape.friction = _SURFACE_FRICTION
        sliding = pymunk.PivotJoint(space.static_body, body, (0, 0), (0, 0))
        turning = pymunk.GearJoint(space.static_body, body, 0.0, 1.0)
        for joint, force in ((sliding, _SLIDING_FRICTION), (turning, _TURNING_FRICTION)):
            joint.max_bias = 0.0  # friction reduces speed and does not pull back
            joint.max_force = force
        space.add(body, shape, sliding, turning)
        return body

    @property
    def state(self) -> TableState:
        """The present state of the table."""
        blocks = []
        for color, body in zip(self._colors, self._blocks, strict=True):
            x, y = body.position
            blocks.append(Block(color, x, y, body.angle))
        x, y = self._pusher.position
        return TableState((x, y), tuple(blocks))

    def move_towards(self, x: float, y: float) -> None:
        """Move the pusher straight towards (x, y) for one control step, at most `MAX_STEP`."""
        from_x, from_y = self._pusher.position
        offset_x, offset_y = x - from_x, y - from_y
        rate = CONTROL_HZ * min(1.0, MAX_STEP / max(hypot(offset_x, offset_y), 1e-9))
        self._control_body.velocity = (offset_x * rate, offset_y * rate)
        for _ in range(_SUBSTEPS):
            self._space.step(1.0 / (CONTROL_HZ * _SUBSTEPS))


def within_reach(x: float, y: float) -> tuple[float, float]:
    """Return the point nearest to (x, y) that the pusher's centre can reach."""
    low, high = PUSHER_RADIUS, 1.0 - PUSHER_RADIUS
    return min(max(x, low), high), min(max(y, low), high)


def zones_at(x: float, y: float, margin: float = 0.0) -> Sequence[str]:
    """Return the places whose zone, enlarged by `margin`, contains the point (x, y)."""
    return [name for name, (zx, zy) in ZONES.items() if hypot(x - zx, y - zy) <= ZONE_RADIUS + margin]

"""The tabletop's world: what lies on the table, where, and how it moves.

Lengths are in table sides: (0, 0) is the corner at the top left of the picture, x runs to the right, y **down**, so a
position times the picture's size is a pixel. One control step is a tenth of a second.

The physics is pymunk's, seen from above, so nothing falls: each block is held by two joints to the table that give way
at a largest force, which is dry friction. The pusher is a body like the blocks, pulled along by a joint of limited
force: it pushes blocks and is stopped by what it can't move, rather than passing through.
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
"""Name to sRGB: six colours that still differ at 64 × 64 pixels and after a video codec."""

ZONES: dict[str, tuple[float, float]] = {
    "left": (0.16, 0.5),
    "right": (0.84, 0.5),
    "top": (0.5, 0.16),
    "bottom": (0.5, 0.84),
}
"""Name to centre of the places that a block can be pushed to."""

ZONE_RADIUS = 0.11
BLOCK_SIDE = 0.12
PUSHER_RADIUS = 0.04
CONTROL_HZ = 10
MAX_SPEED = 0.4  # of the pusher, table sides a second
MAX_STEP = MAX_SPEED / CONTROL_HZ

_SUBSTEPS = 8
_BLOCK_MASS = 1.0
_SLIDING_FRICTION = (
    20.0  # force at which a block starts to slide; a free one stops within a hundredth of the table
)
_TURNING_FRICTION = (
    0.8  # torque at which it starts to turn: about what that friction gives over a square's area
)
_PUSHER_FORCE = 150.0  # enough for six blocks in a row, not enough to press one into another
_SURFACE_FRICTION = 0.6


class Block(NamedTuple):
    """A block: its colour, its centre, its angle in radians."""

    color: str
    x: float
    y: float
    angle: float


class TableState(NamedTuple):
    """Where everything is at one moment. All that the drawing, the goals and the experts see."""

    pusher: tuple[float, float]
    blocks: tuple[Block, ...]

    def block(self, color: str) -> Block:
        """The block of that colour, which must be on the table."""
        return next(block for block in self.blocks if block.color == color)

    def distance_to(self, block: Block) -> float:
        """From the pusher's centre to the block's."""
        return hypot(block.x - self.pusher[0], block.y - self.pusher[1])


class TableWorld:
    """The bodies on the table; equal states and equal targets give equal states, bit for bit."""

    def __init__(self, state: TableState) -> None:
        space = pymunk.Space()
        space.iterations = 10
        space.collision_slop = 1e-3  # pymunk's own is a tenth, which here is most of a block
        ground = space.static_body
        corners = [(0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)]
        for start, end in zip(corners, corners[1:] + corners[:1], strict=True):
            # A wall as thick as the table is wide lets nothing through, however hard it is pushed.
            outward = (start[1] - end[1], end[0] - start[0])
            shift = pymunk.Vec2d(*outward) * -0.5
            wall = pymunk.Segment(ground, shift + start, shift + end, 0.5)
            wall.friction = _SURFACE_FRICTION
            space.add(wall)

        self._colors = [block.color for block in state.blocks]
        self._blocks = [self._add_block(space, block) for block in state.blocks]
        self._pusher = pymunk.Body(1.0, inf)
        self._pusher.position = state.pusher
        disc = pymunk.Circle(self._pusher, PUSHER_RADIUS)
        disc.friction = _SURFACE_FRICTION
        self._hand = pymunk.Body(body_type=pymunk.Body.KINEMATIC)
        grip = pymunk.PivotJoint(self._hand, self._pusher, (0, 0), (0, 0))
        grip.max_bias = 0.0  # the hand gives the pusher its speed; where the hand itself is means nothing
        grip.max_force = _PUSHER_FORCE
        space.add(self._pusher, disc, self._hand, grip)
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
            joint.max_bias = 0.0  # friction takes speed away, it does not pull back
            joint.max_force = force
        space.add(body, shape, sliding, turning)
        return body

    @property
    def state(self) -> TableState:
        """Where everything is now."""
        blocks = []
        for color, body in zip(self._colors, self._blocks, strict=True):
            x, y = body.position
            blocks.append(Block(color, x, y, body.angle))
        x, y = self._pusher.position
        return TableState((x, y), tuple(blocks))

    def move_towards(self, x: float, y: float) -> None:
        """One control step with the pusher on its straight way to (x, y), at most `MAX_STEP` of it."""
        here_x, here_y = self._pusher.position
        away_x, away_y = x - here_x, y - here_y
        pace = CONTROL_HZ * min(1.0, MAX_STEP / max(hypot(away_x, away_y), 1e-9))
        self._hand.velocity = (away_x * pace, away_y * pace)
        for _ in range(_SUBSTEPS):
            self._space.step(1.0 / (CONTROL_HZ * _SUBSTEPS))


def within_reach(x: float, y: float) -> tuple[float, float]:
    """The point nearest to (x, y) that the pusher's centre can be at."""
    low, high = PUSHER_RADIUS, 1.0 - PUSHER_RADIUS
    return min(max(x, low), high), min(max(y, low), high)


def zones_at(x: float, y: float, margin: float = 0.0) -> Sequence[str]:
    """The places whose zone, `margin` wider, the point (x, y) lies in."""
    return [name for name, (zx, zy) in ZONES.items() if hypot(x - zx, y - zy) <= ZONE_RADIUS + margin]

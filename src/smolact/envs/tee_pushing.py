"""Geometry of pushing a T with a disc.

In PushT the table stops the T at once when nothing pushes it, and the contact is frictionless. So speed is irrelevant and a
push is pure geometry: where the disc would enter the T, the T moves out along the contact's normal and turns according to its
mass and moment of inertia, as in the environment's physics (pymunk with `damping=0`), but for hundreds of pushes at once.

Lengths are the environment's pixels. A pose is (x, y, angle) of the T's centre of gravity. In the T's own frame the bar's edge
lies on the x axis, around the origin, and the stem points to +y.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# P: pushes or points, N: stands around the T, S: stops along a push.

BOXES = np.array([[[-60.0, 0.0], [60.0, 30.0]], [[-15.0, 30.0], [15.0, 120.0]]])
"""Bar and stem: two corners each, in the T's frame."""
CENTRE = np.array([0.0, 45.0])
"""Centre of gravity in the T's frame: gym-pusht takes the mean of the boxes' centres."""
OUTLINE = np.array(
    [[-60, 0], [60, 0], [60, 30], [15, 30], [15, 120], [-15, 120], [-15, 30], [-60, 30]], float
)
"""The T's corners, with the inside to the right of each edge in the image (y points down)."""
GYRATION = 3000.0
"""Moment of inertia over mass."""
RADIUS = 15.0
"""Radius of the disc."""
WALLS = (7.0, 504.0)
"""Limits of the T in x and y. The disc may pass them; its targets lie in (0, 512)."""


def pose_at(origin: Array, angle: float) -> Array:
    """Return the pose (3,) of a T whose frame has its origin at `origin` (2,)."""
    x, y = CENTRE
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([origin[0] + cos * x - sin * y, origin[1] + sin * x + cos * y, angle])


def to_world(points: Array, pose: Array) -> Array:
    """Transform points (…, 2) from the T's frame to the world, for poses (…, 3)."""
    x, y = points[..., 0] - CENTRE[0], points[..., 1] - CENTRE[1]
    cos, sin = np.cos(pose[..., 2]), np.sin(pose[..., 2])
    return np.stack([pose[..., 0] + cos * x - sin * y, pose[..., 1] + sin * x + cos * y], -1)


def to_tee(points: Array, pose: Array) -> Array:
    """Transform points (…, 2) from the world to the T's frame."""
    x, y = points[..., 0] - pose[..., 0], points[..., 1] - pose[..., 1]
    cos, sin = np.cos(pose[..., 2]), np.sin(pose[..., 2])
    return np.stack([CENTRE[0] + cos * x + sin * y, CENTRE[1] - sin * x + cos * y], -1)


def nearest_on_tee(points: Array) -> tuple[Array, Array]:
    """Return the T's nearest points to `points` (P, 2), in its frame, and the distances: (P, 2), (P,)."""
    on_bar, on_stem = np.clip(points, *BOXES[0]), np.clip(points, *BOXES[1])
    to_bar = np.hypot(points[..., 0] - on_bar[..., 0], points[..., 1] - on_bar[..., 1])
    to_stem = np.hypot(points[..., 0] - on_stem[..., 0], points[..., 1] - on_stem[..., 1])
    bar_is_nearer = to_bar <= to_stem
    return np.where(bar_is_nearer[..., None], on_bar, on_stem), np.where(bar_is_nearer, to_bar, to_stem)


def push(pose: Array, disc: Array, direction: Array, step: float, stops: int) -> Array:
    """Return the T's pose at each stop of straight pushes.

    Args:
        pose: the T's pose, (3,).
        disc: the disc's centre at the start of each push, (P, 2).
        direction: unit vectors, (P, 2).
        step: distance between two stops.

    Returns:
        Poses (S + 1, P, 3), the first of which is `pose`.
    """
    disc = disc.copy()
    poses = np.empty((stops + 1, len(disc), 3))
    poses[0] = pose
    for stop in range(stops):
        current = poses[stop].copy()
        disc += step * direction
        for _ in range(2):  # twice for a disc in the corner between bar and stem
            _resolve_contact(current, disc)
        _resolve_walls(current)
        poses[stop + 1] = current
    return poses


def _resolve_contact(pose: Array, disc: Array) -> None:
    """Move the T out of the disc, in place."""
    disc_in_tee = to_tee(disc, pose)
    contact, distance = nearest_on_tee(disc_in_tee)
    depth = np.maximum(RADIUS - distance, 0.0)
    normal = (contact - disc_in_tee) / np.maximum(distance, 1e-9)[:, None]
    _shift(pose, contact, normal, depth)


def _shift(pose: Array, contact: Array, normal: Array, depth: Array) -> None:
    """Apply the motion of least kinetic energy that moves `contact` by `depth` along `normal` (T's frame)."""
    arm = contact - CENTRE
    lever = arm[:, 0] * normal[:, 1] - arm[:, 1] * normal[:, 0]
    along = depth / (1.0 + lever * lever / GYRATION)
    cos, sin = np.cos(pose[:, 2]), np.sin(pose[:, 2])
    pose[:, 0] += along * (cos * normal[:, 0] - sin * normal[:, 1])
    pose[:, 1] += along * (sin * normal[:, 0] + cos * normal[:, 1])
    pose[:, 2] += along * lever / GYRATION


def _resolve_walls(pose: Array) -> None:
    """Move the T back inside the walls, in place."""
    low, high = WALLS
    # No corner is farther than 76 from the centre of gravity.
    if (pose[:, :2] > low + 76).all() and (pose[:, :2] < high - 76).all():
        return
    rows = np.arange(len(pose))
    for axis in (0, 1):
        for sign, limit in ((1.0, low), (-1.0, high)):
            corners = to_world(OUTLINE, pose[:, None])[:, :, axis]
            depth = sign * (limit - corners)
            worst = depth.argmax(1)
            normal = np.zeros((len(pose), 2))
            angle = pose[:, 2]
            normal[:, 0] = sign * (np.cos(angle) if axis == 0 else np.sin(angle))
            normal[:, 1] = sign * (-np.sin(angle) if axis == 0 else np.cos(angle))
            _shift(pose, OUTLINE[worst], normal, np.maximum(depth[rows, worst], 0.0))

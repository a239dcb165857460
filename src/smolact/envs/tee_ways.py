"""Stands around a T from which a disc can push it, and the shortest collision-free paths to them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import pi

import numpy as np
from numpy.typing import NDArray

from smolact.envs.tee_pushing import OUTLINE, RADIUS, Array, nearest_on_tee, to_tee, to_world

STAND_OFF = 4.0
"""Distance from the T's outline to the edge of a disc on its stand."""
_CLEARANCE = 2.4  # of a path from the T; a chord between two stands around a corner is this close
_SPACING = 9.0  # between the stands along an edge
_AROUND_A_CORNER = 4  # number of stands between the normals of two edges
_SAMPLES = 40  # points of a path where its distance to the T is measured
_REACHABLE = (2.0, 510.0)  # range of the disc's targets, with a margin for its inaccuracy


@dataclass(frozen=True)
class Stands:
    """N stands of the disc, in the T's frame.

    Attributes:
        places: (N, 2), the disc's centre.
        inward: (N, 2), unit vectors from there to the T.
        path_lengths: (N, N), lengths of the straight paths between stands; infinite where the T blocks the path.
    """

    places: Array
    inward: Array
    path_lengths: Array


@lru_cache(maxsize=1)
def stands() -> Stands:
    """Return the stands around the T, except in corners where the disc would touch twice."""
    on_outline, outward = [], []
    corners = len(OUTLINE)
    for index in range(corners):
        start, end, after = (OUTLINE[(index + step) % corners] for step in range(3))
        edge, next_edge = end - start, after - end
        length = float(np.hypot(*edge))
        normal = np.array([edge[1], -edge[0]]) / length
        count = max(round(length / _SPACING), 2)
        for share in (np.arange(count) + 0.5) / count:
            on_outline.append(start + share * edge)
            outward.append(normal)
        if edge[0] * next_edge[1] > edge[1] * next_edge[0]:  # a convex corner
            for angle in np.linspace(0.0, pi / 2, _AROUND_A_CORNER):
                cos, sin = np.cos(angle), np.sin(angle)
                on_outline.append(end)
                outward.append(
                    np.array([cos * normal[0] - sin * normal[1], sin * normal[0] + cos * normal[1]])
                )
    away = RADIUS + STAND_OFF
    places = np.array(on_outline) + away * np.array(outward)
    free = np.flatnonzero(nearest_on_tee(places)[1] > away - 0.01)
    places, inward = places[free], -np.array(outward)[free]
    return Stands(places, inward, _straight_path_lengths(places[:, None], places[None], _CLEARANCE))


def ways(pose: Array, disc: Array) -> tuple[Array, NDArray[np.int64]]:
    """Return the shortest paths from `disc` (2,), in the world, to every stand around a T at `pose` (3,).

    Returns:
        Path lengths (N,), infinite where no path exists, and the first stand (N,) on each path.
    """
    all_stands = stands()
    disc_in_tee = to_tee(disc, pose)
    # A disc that is closer, after a push or a kick, may leave at its present distance.
    clearance = min(_CLEARANCE, float(nearest_on_tee(disc_in_tee)[1]) - RADIUS - 0.5)
    world = to_world(all_stands.places, pose)
    reachable = np.logical_and(world > _REACHABLE[0], world < _REACHABLE[1]).all(axis=1)
    lengths = np.where(reachable, _straight_path_lengths(disc_in_tee, all_stands.places, clearance), np.inf)
    path_lengths = np.where(np.logical_and.outer(reachable, reachable), all_stands.path_lengths, np.inf)
    first = np.arange(len(lengths))
    while True:  # Bellman-Ford: one iteration per bend of the path
        through = lengths[:, None] + path_lengths
        last = through.argmin(0)
        shorter = through[last, np.arange(len(lengths))]
        better = shorter < lengths - 1e-9
        if not better.any():
            return lengths, first
        lengths, first = np.where(better, shorter, lengths), np.where(better, first[last], first)


def _straight_path_lengths(start: Array, end: Array, clearance: float) -> Array:
    """Return lengths of straight paths (…), infinite where the disc would come within `clearance` of the T."""
    share = np.linspace(0.0, 1.0, _SAMPLES).reshape(-1, *(1,) * end.ndim)
    nearest = nearest_on_tee(start + share * (end - start))[1].min(0)
    lengths: Array = np.linalg.norm(end - start, axis=-1)
    return np.where(nearest >= RADIUS + clearance, lengths, np.inf)

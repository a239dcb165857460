"""Stands around a T from which a disc can push it, and the shortest ways to them that do not touch it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import pi

import numpy as np
from numpy.typing import NDArray

from smolact.envs.tee_pushing import OUTLINE, RADIUS, Array, nearest_on_tee, to_tee, to_world

STAND_OFF = 4.0
"""From the T's outline to the edge of a disc on its stand."""
_CLEARANCE = (
    2.4  # that a way leaves at least; the chord between two stands around a corner comes as near as this
)
_SPACING = 9.0  # of the stands along an edge
_AROUND_A_CORNER = 4  # stands, from one edge's normal to the next one's
_SAMPLES = 40  # of a way, where its distance to the T is measured
_REACHABLE = (2.0, 510.0)  # what the disc can be sent to, with a little left for its own inaccuracy


@dataclass(frozen=True)
class Stands:
    """N places in the T's frame.

    Attributes:
        places: (N, 2), of the disc's centre.
        inward: (N, 2), unit vectors from there to the T.
        roads: (N, N), lengths of the straight ways between them; infinite where the T is in the way.
    """

    places: Array
    inward: Array
    roads: Array


@lru_cache(maxsize=1)
def stands() -> Stands:
    """Where to push the T from: all around it, but for the corners where the disc would touch twice."""
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
        if edge[0] * next_edge[1] > edge[1] * next_edge[0]:  # the outline turns around the T here
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
    return Stands(places, inward, _road_lengths(places[:, None], places[None], _CLEARANCE))


def ways(pose: Array, disc: Array) -> tuple[Array, NDArray[np.int64]]:
    """The shortest ways from `disc` (2,), in the world, to every stand around a T at `pose` (3,).

    Returns:
        Their lengths (N,), infinite where none leads, and the stand (N,) that each goes to first.
    """
    known = stands()
    here = to_tee(disc, pose)
    # Who stands nearer than that, after a push or a kick, may leave as near as he is.
    room = min(_CLEARANCE, float(nearest_on_tee(here)[1]) - RADIUS - 0.5)
    world = to_world(known.places, pose)
    reachable = np.logical_and(world > _REACHABLE[0], world < _REACHABLE[1]).all(axis=1)
    lengths = np.where(reachable, _road_lengths(here, known.places, room), np.inf)
    roads = np.where(np.logical_and.outer(reachable, reachable), known.roads, np.inf)
    first = np.arange(len(lengths))
    while True:  # Bellman and Ford: a round for each bend of the way
        through = lengths[:, None] + roads
        last = through.argmin(0)
        shorter = through[last, np.arange(len(lengths))]
        better = shorter < lengths - 1e-9
        if not better.any():
            return lengths, first
        lengths, first = np.where(better, shorter, lengths), np.where(better, first[last], first)


def _road_lengths(start: Array, end: Array, clearance: float) -> Array:
    """Lengths of straight ways (…), infinite where the disc would come nearer to the T than `clearance`."""
    share = np.linspace(0.0, 1.0, _SAMPLES).reshape(-1, *(1,) * end.ndim)
    nearest = nearest_on_tee(start + share * (end - start))[1].min(0)
    lengths: Array = np.linalg.norm(end - start, axis=-1)
    return np.where(nearest >= RADIUS + clearance, lengths, np.inf)

"""The simulated SO-101's world: joints in the arm's units, cubes and containers, one control step at a time."""

from __future__ import annotations

from collections.abc import Sequence
from math import cos, hypot, sin
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smolact.envs.rendering import REFLECTIONS, SceneRenderer, choose_backend
from smolact.envs.so101_language import COLORS, PLACES, Goal
from smolact.envs.so101_model import (
    BIN_HEIGHT,
    BIN_INNER,
    CAMERAS,
    CUBE_SIDE,
    JOINTS,
    PAN_AXIS,
    PLATE_RADIUS,
    SUBSTEPS,
    load_model,
)

Vector = NDArray[np.float64]

HOME = (0.0, -55.0, 45.0, 65.0, 0.0, 10.0)
"""Where the joints are, about, when an episode begins, in the arm's units: above the table, looking at it."""

GRASP_POINT = (0.006, 0.0, -0.095)
"""The middle between the jaws' tips at a cube's width, in the frame of the body `gripper`."""

REACH_DISTANCE = 0.05  # from the grasp point to a cube's centre

_HOME_NOISE = 3.0  # degrees
_CUBE_AREA = (0.16, 0.27), 35.0  # distances from the pan axis, largest angle to its front in degrees
_PLACE_AREA = (0.19, 0.24), (52.0, 66.0)  # distances, and angles to either side
_CUBE_DISTANCE = 0.065
_PLACE_DISTANCE = 0.11
_RESTING = 0.05  # m/s


class SO101World:
    """A MuJoCo simulation of the scene.

    Args:
        n_cubes: number of cubes.
        size: (height, width) of pictures.

    Attributes:
        model, data: MuJoCo's, for experts.
        colors: the cubes' colours, by their number.

    Raises:
        MissingDependencyError: the extra is not installed, or no graphics library is.
    """

    def __init__(self, n_cubes: int, size: tuple[int, int]) -> None:
        choose_backend()  # before MuJoCo is imported
        self.model: Any = load_model(n_cubes, size)
        import mujoco

        self._mujoco: Any = mujoco
        self.data: Any = mujoco.MjData(self.model)
        self.colors: tuple[str, ...] = ()
        self._renderer = SceneRenderer(self.model, size, without=(REFLECTIONS,))
        self._gripper = int(self.model.body("gripper").id)
        self._jaws = {self._gripper: 0, int(self.model.body("moving_jaw_so101_v1").id): 1}
        self._cubes = [int(self.model.body(f"cube_{number}").id) for number in range(n_cubes)]
        low, high = self.model.jnt_range[: len(JOINTS)].T
        self._zero, self._scale = np.zeros(len(JOINTS)), np.full(len(JOINTS), np.pi / 180)
        self._zero[-1], self._scale[-1] = low[-1], (high[-1] - low[-1]) / 100
        self.limits: tuple[Vector, Vector] = self.to_units(low), self.to_units(high)

    def to_units(self, angles: Vector) -> Vector:
        """Return the joints (6,) in the arm's units, from radians."""
        units: Vector = (np.asarray(angles) - self._zero) / self._scale
        return units

    def to_radians(self, values: Vector) -> Vector:
        """Return the joints (6,) in radians, from the arm's units."""
        radians: Vector = np.asarray(values) * self._scale + self._zero
        return radians

    @property
    def positions(self) -> Vector:
        """Where the joints are, (6,), in the arm's units."""
        return self.to_units(self.data.qpos[: len(JOINTS)])

    @property
    def targets(self) -> Vector:
        """Where the joints were sent last, (6,), in the arm's units."""
        return self.to_units(self.data.ctrl)

    @property
    def grasp_point(self) -> Vector:
        """The middle between the jaws' tips, (3,)."""
        rotation: Vector = self.data.xmat[self._gripper].reshape(3, 3)
        point: Vector = self.data.xpos[self._gripper] + rotation @ GRASP_POINT
        return point

    def from_grasp_point(self, position: Vector) -> Vector:
        """Return a position (3,) as seen from the grasp point: x from the fixed to the moving jaw, z up the gripper."""
        rotation: Vector = self.data.xmat[self._gripper].reshape(3, 3)
        offset: Vector = rotation.T @ (position - self.grasp_point)
        return offset

    def cube(self, color: str) -> tuple[Vector, Vector]:
        """Return the centre (3,) and the rotation (3, 3) of the cube of a colour."""
        body = self._cubes[self.colors.index(color)]
        return self.data.xpos[body].copy(), self.data.xmat[body].reshape(3, 3).copy()

    def place(self, name: str) -> Vector:
        """Return the centre (2,) of a place."""
        return np.array(self.model.body(name).pos[:2])

    def touching(self, color: str) -> tuple[bool, bool]:
        """Return whether the fixed and the moving jaw touch the cube of a colour."""
        body = self._cubes[self.colors.index(color)]
        touched = [False, False]
        for first, second in self.data.contact.geom[: self.data.ncon]:
            bodies = int(self.model.geom_bodyid[first]), int(self.model.geom_bodyid[second])
            if body in bodies:
                jaw = self._jaws.get(bodies[0] if bodies[1] == body else bodies[1])
                if jaw is not None:
                    touched[jaw] = True
        return touched[0], touched[1]

    def is_placed(self, color: str, place: str) -> bool:
        """Whether the cube of a colour is in or on a place, wherever the gripper is."""
        centre, _ = self.cube(color)
        x, y = centre[:2] - self.place(place)
        if place == "bin":
            return bool(max(abs(x), abs(y)) < BIN_INNER / 2 and centre[2] < BIN_HEIGHT)
        return bool(hypot(x, y) < PLATE_RADIUS and centre[2] < 2 * CUBE_SIDE)

    def fulfils(self, goal: Goal) -> bool:
        """Whether the goal holds at this moment.

        Reach: the gripper is at the cube, and no other cube is nearer. Pick and place: the cube lies in the place, and no jaw
        touches it.
        """
        if goal.place is not None:
            speed = np.linalg.norm(self.data.cvel[self._cubes[self.colors.index(goal.color)]][3:])
            still = speed < _RESTING and not any(self.touching(goal.color))
            return bool(still and self.is_placed(goal.color, goal.place))
        point = self.grasp_point
        distances = {color: float(np.linalg.norm(self.cube(color)[0] - point)) for color in self.colors}
        nearest = min(distances, key=lambda color: distances[color])
        return nearest == goal.color and distances[nearest] < REACH_DISTANCE

    def reset(self, colors: Sequence[str], random: np.random.Generator) -> None:
        """Draw a scene with cubes of these colours."""
        self._mujoco.mj_resetData(self.model, self.data)
        self.colors = tuple(colors)
        places, cubes = _draw_layout(len(colors), random)
        yaws = random.uniform(-np.pi / 4, np.pi / 4, len(colors))
        home = np.array(HOME)
        home[:-1] += random.uniform(-_HOME_NOISE, _HOME_NOISE, len(JOINTS) - 1)
        for name, position in zip(PLACES, places, strict=True):
            self.model.body(name).pos[:2] = position
        for number, (color, position) in enumerate(zip(colors, cubes, strict=True)):
            self.model.geom(f"cube_{number}").rgba[:3] = COLORS[color]
            half = yaws[number] / 2
            turned = cos(half), 0.0, 0.0, sin(half)
            self.data.joint(f"cube_{number}").qpos[:] = (*position, CUBE_SIDE / 2, *turned)
        self.data.qpos[: len(JOINTS)] = self.to_radians(home)
        self.data.ctrl[:] = self.data.qpos[: len(JOINTS)]
        self._mujoco.mj_forward(self.model, self.data)

    def step(self, target: Vector) -> None:
        """Simulate one control step, with the joints sent to `target` (6,), in the arm's units."""
        self.data.ctrl[:] = self.to_radians(np.clip(target, *self.limits))
        self._mujoco.mj_step(self.model, self.data, SUBSTEPS)
        self._mujoco.mj_forward(
            self.model, self.data
        )  # positions and contacts of the new joints, not of those before

    def draw(self, camera: str) -> NDArray[np.uint8]:
        """Return the picture of a camera, (H, W, 3) uint8.

        Raises:
            MissingDependencyError: the graphics library does not work.
        """
        return self._renderer.draw(self.data, CAMERAS[camera])

    def close(self) -> None:
        """Free the graphics context."""
        self._renderer.close()


def _draw_layout(n_cubes: int, random: np.random.Generator) -> tuple[list[Vector], list[Vector]]:
    """Return positions (2,) of the places and of the cubes, with distance between them."""
    side = 1.0 if random.random() < 0.5 else -1.0
    places = [
        _polar(random.uniform(*_PLACE_AREA[0]), sign * random.uniform(*_PLACE_AREA[1]))
        for sign in (side, -side)
    ]
    cubes: list[Vector] = []
    while len(cubes) < n_cubes:
        cubes.clear()  # sometimes they leave no space for the last: restart
        for _ in range(64):
            angle = random.uniform(-_CUBE_AREA[1], _CUBE_AREA[1])
            position = _polar(random.uniform(*_CUBE_AREA[0]), angle)
            if all(np.linalg.norm(position - other) > _CUBE_DISTANCE for other in cubes) and all(
                np.linalg.norm(position - place) > _PLACE_DISTANCE for place in places
            ):
                cubes.append(position)
            if len(cubes) == n_cubes:
                break
    return places, cubes


def _polar(distance: float, degrees: float) -> Vector:
    angle = np.deg2rad(degrees)
    return np.array(PAN_AXIS) + distance * np.array([np.cos(angle), np.sin(angle)])

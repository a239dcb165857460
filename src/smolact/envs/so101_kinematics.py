"""Forward and inverse kinematics of the simulated SO-101, on MuJoCo's Jacobian."""

from __future__ import annotations

from typing import Any

import numpy as np

from smolact.envs.so101_model import JOINTS
from smolact.envs.so101_world import GRASP_POINT, SO101World, Vector

ARM = len(JOINTS) - 1
"""Joints before the gripper."""

_ITERATIONS = 8
_DAMPING = 0.003
_LEVER = 0.02  # metres that a radian of orientation counts: little, so that the arm leans before it misses the point
_LARGEST = 0.3  # radians an iteration


class Kinematics:
    """The pose of the arm's targets, and the joints of poses near it.

    Args:
        world: the simulation, which is not changed.

    Attributes:
        point: the grasp point, (3,).
        yaw: the direction from the fixed to the moving jaw, about the vertical, in radians.
        speed: of the grasp point at present, in m/s.
    """

    def __init__(self, world: SO101World) -> None:
        import mujoco

        self._mujoco: Any = mujoco
        self._world = world
        self._body = int(world.model.body("gripper").id)
        self._data: Any = mujoco.MjData(world.model)
        self._angles: Vector = np.array(world.data.ctrl[:ARM])
        point, rotation, jacobian = self._forward(self._angles)
        self.point, self._rotation = point, rotation
        self.yaw = float(np.arctan2(rotation[1, 0], rotation[0, 0]))
        self.speed = float(np.linalg.norm(jacobian[:3] @ world.data.qvel[:ARM]))

    def solve(self, point: Vector, yaw: float, max_turn: float = np.inf) -> Vector:
        """Return the joints (5,), in the arm's units, that bring the grasp point to `point`, gripper down, jaws along `yaw`.

        Damped least squares (Buss 2004, section 6) from the present targets. Where the arm can't point down, it leans.

        Args:
            point: (3,).
            yaw: radians.
            max_turn: the largest change of the gripper's orientation, in radians.
        """
        down = np.array([[np.cos(yaw), -np.sin(yaw), 0], [np.sin(yaw), np.cos(yaw), 0], [0, 0, 1.0]])
        wanted = self._turned(self._rotation, down, max_turn)
        low, high = self._world.model.jnt_range[:ARM].T
        angles = self._angles
        for _ in range(_ITERATIONS):
            now, rotation, jacobian = self._forward(angles)
            error = np.concatenate([point - now, _LEVER * self._rotation_between(rotation, wanted)])
            jacobian[3:] *= _LEVER
            change = _damped_least_squares(jacobian, error)
            beyond = (angles + change < low) | (angles + change > high)
            if beyond.any():  # the other joints do what these can't
                jacobian[:, beyond] = 0.0
                change = np.where(beyond, change, _damped_least_squares(jacobian, error))
            angles = np.clip(angles + np.clip(change, -_LARGEST, _LARGEST), low, high)
        return self._world.to_units(np.append(angles, 0.0))[:ARM]

    def _rotation_between(self, start: Vector, end: Vector) -> Vector:
        """Return the rotation vector (3,) that turns one orientation (3, 3) to another."""
        quaternion, vector = np.zeros(4), np.zeros(3)
        self._mujoco.mju_mat2Quat(quaternion, (end @ start.T).ravel())
        self._mujoco.mju_quat2Vel(vector, quaternion, 1.0)
        return vector

    def _turned(self, start: Vector, end: Vector, max_turn: float) -> Vector:
        """Return the orientation (3, 3) on the way from one to another, at most `max_turn` away."""
        vector = self._rotation_between(start, end)
        angle = float(np.linalg.norm(vector))
        if angle <= max_turn:
            return end
        quaternion, turn = np.zeros(4), np.zeros(9)
        self._mujoco.mju_axisAngle2Quat(quaternion, vector / angle, max_turn)
        self._mujoco.mju_quat2Mat(turn, quaternion)
        return turn.reshape(3, 3) @ start

    def _forward(self, angles: Vector) -> tuple[Vector, Vector, Vector]:
        """Return the grasp point (3,), the gripper's rotation (3, 3) and their Jacobian (6, 5)."""
        model, data = self._world.model, self._data
        data.qpos[:ARM] = angles
        self._mujoco.mj_kinematics(model, data)
        self._mujoco.mj_comPos(model, data)
        rotation: Vector = data.xmat[self._body].reshape(3, 3).copy()
        point: Vector = data.xpos[self._body] + rotation @ GRASP_POINT
        jacobian = np.zeros((6, model.nv))
        self._mujoco.mj_jac(model, data, jacobian[:3], jacobian[3:], point, self._body)
        return point, rotation, jacobian[:, :ARM].copy()


def _damped_least_squares(jacobian: Vector, error: Vector) -> Vector:
    damped = jacobian @ jacobian.T + _DAMPING**2 * np.eye(len(error))
    change: Vector = jacobian.T @ np.linalg.solve(damped, error)
    return change

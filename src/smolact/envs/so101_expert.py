"""The simulated SO-101's expert: inverse kinematics, and a choice of what to do next from the state alone.

Gripper pointing down, it goes over the cube, down, closes, lifts, goes over the place, lowers, opens and rises. Each of these
follows from where gripper and cubes are, so it can be disturbed at any step. A hand's speed and acceleration bound its way.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import gymnasium
import numpy as np
from numpy.typing import NDArray

from smolact.envs.demonstrations import ActionNoise
from smolact.envs.so101 import SO101
from smolact.envs.so101_kinematics import Kinematics
from smolact.envs.so101_model import BIN_HEIGHT, CONTROL_HZ, CUBE_SIDE, JOINTS, PAN_AXIS
from smolact.envs.so101_world import SO101World, Vector
from smolact.errors import ConfigError

HOVER = 0.08
"""Height of the gripper on its way over things, with or without a cube."""

_OPEN, _SQUEEZE = 42.0, 9.0  # percent of the gripper's opening; how far below its position it is sent to hold
_NARROW = 8.0  # percent: a cube does not fit
_JOINT_STEP = 6.0  # degrees, or percent of the gripper, a control step
_SPEED, _ACCELERATION, _TURNING = 0.28, 1.2, 2.5  # m/s, m/s², rad/s
_NEARING = 6.0  # 1/s: the speed is at most this times the distance that is left
_GRASP_HEIGHT = 0.012
_RELEASE_HEIGHT = {"bin": BIN_HEIGHT + 0.008, "plate": 0.024}  # of the cube's centre
_ABOVE_REACHED = 0.03  # of the grasp point over a cube's centre
_JAW_ROOM = (-0.03, 0.05)  # along the jaws from the grasp point: where other cubes are in the way


class _Pose(NamedTuple):
    """Where to go: the grasp point, the jaws' direction, the gripper's opening."""

    point: Vector
    yaw: float
    gripper: float


class SO101Expert:
    """The expert. It is disturbed more gently than others: a degree of the shoulder moves the gripper by 5 mm."""

    noise = ActionNoise(std=0.001, kick_probability=0.01, kick_std=0.004, kick_steps=6)

    def act(self, env: gymnasium.Env[Any, Any]) -> NDArray[np.float32]:
        """Return where the joints should go, (6,), in the arm's units."""
        arm = env.unwrapped
        if not isinstance(arm, SO101):
            raise ConfigError(f"The simulated SO-101's expert can't act in {arm}.")
        kinematics = Kinematics(arm.world)
        if arm.goal.place is None:
            pose = _reach(arm.world, arm.goal.color, kinematics)
        else:
            pose = _pick_and_place(arm.world, arm.goal.color, arm.goal.place, kinematics)
        return _step_towards(arm.world, pose, kinematics).astype(np.float32)


def _reach(world: SO101World, color: str, now: Kinematics) -> _Pose:
    cube, _ = world.cube(color)
    yaw, gripper = _grasp_yaw(world, color, now), float(world.targets[-1])
    if _distance(now.point, cube) < 0.025:
        return _Pose(np.array([*cube[:2], cube[2] + _ABOVE_REACHED]), yaw, gripper)
    return _Pose(_over(now.point, cube), yaw, gripper)


def _pick_and_place(world: SO101World, color: str, place_name: str, now: Kinematics) -> _Pose:
    (cube, _), place = world.cube(color), world.place(place_name)
    held, at_place = all(world.touching(color)), _distance(cube, place) < 0.012
    if world.is_placed(color, place_name) and (at_place or not held):
        return _Pose(np.array([*now.point[:2], HOVER]), now.yaw, _OPEN)
    if held:
        return _carry(world, cube, place, _RELEASE_HEIGHT[place_name], now)
    return _grasp(world, color, cube, now)


def _carry(world: SO101World, cube: Vector, place: Vector, release: float, now: Kinematics) -> _Pose:
    to_place = place - cube[:2]
    squeezed = max(float(world.positions[-1]) - _SQUEEZE, 0.0)
    if np.linalg.norm(to_place) > 0.012:
        return _Pose(_over(now.point, now.point[:2] + to_place), now.yaw, squeezed)
    if cube[2] < release + 0.003:
        return _Pose(now.point, now.yaw, _OPEN)
    return _Pose(now.point + np.append(to_place, release - cube[2]), now.yaw, squeezed)


def _grasp(world: SO101World, color: str, cube: Vector, now: Kinematics) -> _Pose:
    yaw = _grasp_yaw(world, color, now)
    opening, offset = float(world.positions[-1]), world.from_grasp_point(cube)
    closing = _NARROW < opening < _OPEN - 6.0
    depth = (
        0.012 if closing else 0.004
    )  # it closes once it is deep enough, and continues though the cube moves
    if abs(offset[1]) < 0.009 and -0.018 < offset[0] < 0.03 and abs(offset[2]) < depth:  # between the jaws
        return _Pose(now.point, now.yaw, max(opening - _JOINT_STEP, 0.0))
    distance = _distance(now.point, cube)
    aligned = distance < (0.006 if now.point[2] > 0.06 else 0.012) and abs(_turn(yaw - now.yaw)) < 0.15
    if aligned and not closing:
        return _Pose(np.array([*cube[:2], _GRASP_HEIGHT]), yaw, _OPEN)
    return _Pose(_over(now.point, cube), yaw, _OPEN)


def _over(point: Vector, target: Vector) -> Vector:
    """Return the next point on the way over `target`: first up, then to the side."""
    if point[2] < HOVER - 0.015 and _distance(point, target) > 0.02:
        return np.array([*point[:2], HOVER + 0.01])
    return np.array([*target[:2], HOVER])


def _step_towards(world: SO101World, pose: _Pose, now: Kinematics) -> Vector:
    """Return the joints' targets for the next step to a pose, within a hand's speed and acceleration."""
    dt = 1.0 / CONTROL_HZ
    way = pose.point - now.point
    distance = float(np.linalg.norm(way))
    length = min(distance, dt * min(_SPEED, _NEARING * distance, now.speed + _ACCELERATION * dt))
    waypoint = now.point + way * (length / max(distance, 1e-9))
    sent = world.targets
    steps = now.solve(waypoint, pose.yaw, _TURNING * dt) - sent[:-1]
    steps *= min(1.0, _JOINT_STEP / max(np.abs(steps).max(), 1e-9))
    closing = np.clip(pose.gripper - sent[-1], -_JOINT_STEP, _JOINT_STEP)
    joints: Vector = sent + np.append(steps, closing)
    return joints


def _grasp_yaw(world: SO101World, color: str, now: Kinematics) -> float:
    """Return the jaws' direction that fits the cube's sides, with room for the open jaw, and little turning."""
    centre, rotation = world.cube(color)
    others = [world.cube(other)[0][:2] - centre[:2] for other in world.colors if other != color]
    roll = np.deg2rad(world.targets[JOINTS.index("wrist_roll")])
    panned = _turn(_azimuth(centre) - _azimuth(now.point))
    low, high = world.model.jnt_range[JOINTS.index("wrist_roll")]

    def cost(yaw: float) -> float:
        along, across = np.array([np.cos(yaw), np.sin(yaw)]), np.array([-np.sin(yaw), np.cos(yaw)])
        room = 0.7 * CUBE_SIDE
        blocked = sum(
            _JAW_ROOM[0] - room < offset @ along < _JAW_ROOM[1] + room and abs(offset @ across) < room + 0.012
            for offset in others
        )
        turn = _turn(yaw - now.yaw)
        impossible = not low + 0.1 < roll + turn - panned < high - 0.1
        return float(10.0 * blocked + 100.0 * impossible + abs(turn))

    base = np.arctan2(rotation[1, 0], rotation[0, 0])
    return float(min((base + quarter * np.pi / 2 for quarter in range(4)), key=cost))


def _azimuth(point: Vector) -> float:
    return float(np.arctan2(point[1] - PAN_AXIS[1], point[0] - PAN_AXIS[0]))


def _turn(angle: float) -> float:
    return float((angle + np.pi) % (2 * np.pi) - np.pi)


def _distance(a: Vector, b: Vector) -> float:
    return float(np.linalg.norm(a[:2] - b[:2]))

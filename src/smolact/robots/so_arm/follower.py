"""The followers: one arm (`so100_follower`, `so101_follower`) or a pair of them (`bi_so_follower`), with cameras.

Types, settings, names of numbers and cameras, and units are LeRobot's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smolact.errors import ConfigError
from smolact.robots.base import Observation, RobotFeatures
from smolact.robots.cameras import Camera, connect_cameras, make_cameras
from smolact.robots.feetech import registers
from smolact.robots.feetech.bus import RETRIES
from smolact.robots.safety import MAX_AGE_S, MAX_STEP, Gate, choose_steps, limit_change, make_limits
from smolact.robots.so_arm.arm import GRIPPER, MOTORS, Gains, SOArm
from smolact.robots.so_arm.pairs import sides
from smolact.types import ACTION, IMAGES, STATE


@dataclass(kw_only=True)
class FollowerArm:
    """Settings of one follower arm; see `make_follower`."""

    port: str
    disable_torque_on_disconnect: bool = True
    max_relative_target: float | dict[str, float] | None = None
    use_degrees: bool = True
    position_p_coefficient: int = 16
    position_i_coefficient: int = 0
    position_d_coefficient: int = 32
    num_read_retries: int = RETRIES
    cameras: dict[str, Any] = field(default_factory=dict)


class _Part:
    """One arm of a robot: the prefix of its names, its motors and its settings."""

    def __init__(
        self, prefix: str, config: FollowerArm, id_: str | None, calibration_dir: Path | None, flag: str
    ) -> None:
        self.prefix, self.config = prefix, config
        self.arm = SOArm(
            config.port,
            f"follower '{id_}'" if id_ else f"{prefix.rstrip('_')} follower".strip(),
            "robots",
            name=id_,
            calibration_dir=calibration_dir,
            use_degrees=config.use_degrees,
            retries=config.num_read_retries,
        )
        self.gains = Gains(
            config.position_p_coefficient, config.position_i_coefficient, config.position_d_coefficient
        )
        self.max_relative = _max_relative(config.max_relative_target, f"{flag}.max_relative_target")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"{self.prefix}{motor}.pos" for motor in MOTORS)

    def connect(self) -> None:
        self.arm.open()
        self.arm.check_calibration()
        self.arm.configure(self.gains)
        self.arm.hold(guarded=self.config.disable_torque_on_disconnect)

    def reconnect(self) -> None:
        self.arm.drop()
        self.arm.open()
        self.arm.check_calibration()
        if not all(self.arm.bus.sync_read(registers.TORQUE_ENABLE).values()):  # it lost its power as well
            self.arm.configure(self.gains)
        self.arm.hold(guarded=self.config.disable_torque_on_disconnect)

    def send(self, goals: Mapping[str, float]) -> dict[str, float]:
        if self.max_relative:
            present = self.arm.positions()
            goals = {
                motor: limit_change(goal, present[motor], self.max_relative[motor])
                for motor, goal in goals.items()
            }
        self.arm.set_goals(goals)
        return dict(goals)


def _max_relative(value: float | Mapping[str, float] | None, flag: str) -> dict[str, float]:
    """Return the farthest goal of each motor; empty without one."""
    if value is None:
        return {}
    by_name = dict(value) if isinstance(value, Mapping) else dict.fromkeys(MOTORS, value)
    if by_name.keys() != MOTORS.keys():
        raise ConfigError(
            f"{flag} is one number, or one for each of {', '.join(MOTORS)}; found {', '.join(by_name)}."
        )
    for motor, largest in by_name.items():
        if not largest > 0:
            raise ConfigError(f"{flag} of '{motor}' is {largest}: it must be above 0.")
    return {motor: float(largest) for motor, largest in by_name.items()}


class SOFollower:
    """A robot of one or two follower arms, with cameras. Made by `make_follower` and `make_bimanual_follower`.

    Attributes:
        gate: checks every action; joint limits are those of the calibration.

    Raises:
        ConfigError: invalid settings, or a damaged calibration file.
    """

    def __init__(
        self,
        name: str,
        parts: list[_Part],
        cameras: Mapping[str, Camera],
        max_step: float | Mapping[str, float] | None,
        limits: Mapping[str, tuple[float, float]],
        max_action_age: float,
    ) -> None:
        self._name, self._parts, self._cameras = name, parts, dict(cameras)
        self._names = tuple(name for part in parts for name in part.names)
        self._settings = max_step, dict(limits), max_action_age
        self.gate = self._make_gate()

    @property
    def name(self) -> str:
        """The robot's type in a dataset: LeRobot's `so_follower` or `bi_so_follower`."""
        return self._name

    @property
    def arms(self) -> dict[str, SOArm]:
        """The arms by the prefix of their names."""
        return {part.prefix: part.arm for part in self._parts}

    @property
    def features(self) -> RobotFeatures:
        """The observation and action features, with limits if all arms are calibrated."""
        low, high = self.gate.limits.low, self.gate.limits.high
        known = bool((np.isfinite(low) & np.isfinite(high)).all())
        units = tuple(unit.value for part in self._parts for unit in part.arm.units.values())
        return RobotFeatures(
            action=self._names,
            vectors={STATE: self._names},
            cameras={f"{IMAGES}.{name}": camera.shape for name, camera in self._cameras.items()},
            limits=tuple(zip(low.tolist(), high.tolist(), strict=True)) if known else None,
            units={STATE: units, ACTION: units},
        )

    def connect(self) -> None:
        """Open ports and cameras, configure the motors and hold them where they are.

        Raises:
            RobotError: a port, motor or camera does not answer, or an arm is not calibrated; nothing is left open.
            UnsafeActionError: a joint stands outside its limits; nothing is left open.
            MissingDependencyError: pyserial is not installed.
        """
        with self._closed_on_error():
            connect_cameras(self._cameras.values())
            for part in self._parts:
                part.connect()
            self._read_position()
            self.gate.check_position()

    def drop(self) -> None:
        """Close the ports, so that the system can give their names again; the motors stay as they are."""
        for part in self._parts:
            part.arm.drop()

    def reconnect(self) -> None:
        """Connect again after a lost connection; motors that kept their power keep holding. Raises as `connect` does."""
        for part in self._parts:
            part.reconnect()
        self._read_position()

    def get_observation(self) -> Observation:
        """Return `observation.state` (D,) float32 in the joints' units, and cameras (H, W, 3) uint8.

        Raises:
            RobotError: an arm or a camera does not answer.
        """
        observation = self.get_state()
        return observation | {f"{IMAGES}.{name}": camera.read() for name, camera in self._cameras.items()}

    def get_state(self) -> Observation:
        """Return `observation.state` alone, without the cameras. Raises as `get_observation` does."""
        values = [value for part in self._parts for value in part.arm.positions().values()]
        return {STATE: np.array(values, np.float32)}

    def camera_ages(self) -> dict[str, float]:
        """Return the age in seconds of each camera's newest picture, by batch key."""
        return {f"{IMAGES}.{name}": camera.age for name, camera in self._cameras.items()}

    def send_action(self, action: NDArray[Any]) -> NDArray[Any]:
        """Move. Returns the action as sent, (A,) float32, after `max_relative_target`.

        Raises:
            UnsafeActionError: the action is not finite, out of limits, or too far from the last one; nothing was sent.
            RobotError: an arm does not answer.
        """
        (safe,) = self.gate.check_chunk(np.asarray(action)[None])
        sent: list[float] = []
        for part, goals in zip(self._parts, np.split(safe, len(self._parts)), strict=True):
            sent += part.send(dict(zip(MOTORS, goals.tolist(), strict=True))).values()
        self.gate.position = np.array(sent, np.float32)
        return np.array(self.gate.position)

    def disconnect(self) -> None:
        """Switch the torque off, unless `disable_torque_on_disconnect` is false, and close ports and cameras."""
        with contextlib.ExitStack() as stack:
            for camera in self._cameras.values():
                stack.callback(camera.disconnect)
            for part in self._parts:
                stack.callback(part.arm.close, torque_off=part.config.disable_torque_on_disconnect)

    def _read_position(self) -> None:
        # The gate stays the same object, which sources of actions hold.
        self.gate.limits = self._make_gate().limits
        self.gate.position = self.get_observation()[STATE]

    @contextlib.contextmanager
    def _closed_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.disconnect()
            raise

    def _make_gate(self) -> Gate:
        max_step, limits, max_action_age = self._settings
        ranges = {
            f"{part.prefix}{motor}.pos": bounds
            for part in self._parts
            for motor, bounds in part.arm.limits.items()
        }
        defaults = {name: MAX_STEP for name in self._names if GRIPPER not in name}
        steps = choose_steps(self._names, defaults, max_step)
        return Gate(make_limits(self._names, ranges | limits, steps, max_action_age))


def make_follower(
    port: str,
    id: str | None = None,
    calibration_dir: Path | None = None,
    disable_torque_on_disconnect: bool = True,
    max_relative_target: float | dict[str, float] | None = None,
    use_degrees: bool = True,
    position_p_coefficient: int = 16,
    position_i_coefficient: int = 0,
    position_d_coefficient: int = 32,
    num_read_retries: int = RETRIES,
    cameras: dict[str, Any] | None = None,
    max_step: float | dict[str, float] | None = None,
    limits: dict[str, tuple[float, float]] | None = None,
    max_action_age: float = MAX_AGE_S,
) -> SOFollower:
    """Return a follower arm, not connected.

    Args:
        port: the serial port.
        id: the arm's name, under which its calibration is kept.
        calibration_dir: the folder of the calibration, if it is not LeRobot's.
        disable_torque_on_disconnect: let the arm go at the end; false: it holds its last position until its power is cut.
        max_relative_target: the farthest goal from where a joint is, in its units, for all or for each joint by name; farther
            goals are cut. It costs one more reading of the arm in each tick.
        use_degrees: joints in degrees; false: in percent of their range, -100 to 100. The gripper is 0 to 100.
        position_p_coefficient, position_i_coefficient, position_d_coefficient: gains of the motors.
        num_read_retries: how often a request without an answer is repeated.
        cameras: cameras by name, such as "{wrist: {type: opencv, index_or_path: 0, width: 640, height: 480, fps: 30}}".
        max_step: the largest change of a joint in one tick, in its units, for all or by name; 0 for none. None: `MAX_STEP`
            for joints, and none for the gripper, which closes at once.
        limits: ranges of some joints by name, in place of the calibration's.
        max_action_age: the maximum age of a chunk's observation, in seconds.

    Raises:
        ConfigError: invalid settings, or a damaged calibration file.
    """
    config = FollowerArm(
        port=port,
        disable_torque_on_disconnect=disable_torque_on_disconnect,
        max_relative_target=max_relative_target,
        use_degrees=use_degrees,
        position_p_coefficient=position_p_coefficient,
        position_i_coefficient=position_i_coefficient,
        position_d_coefficient=position_d_coefficient,
        num_read_retries=num_read_retries,
        cameras=dict(cameras or {}),
    )
    part = _Part("", config, id, calibration_dir, "--robot")
    found = make_cameras(config.cameras, "--robot.cameras")
    return SOFollower("so_follower", [part], found, max_step, limits or {}, max_action_age)


def make_bimanual_follower(
    left_arm_config: FollowerArm,
    right_arm_config: FollowerArm,
    id: str | None = None,
    calibration_dir: Path | None = None,
    cameras: dict[str, Any] | None = None,
    max_step: float | dict[str, float] | None = None,
    limits: dict[str, tuple[float, float]] | None = None,
    max_action_age: float = MAX_AGE_S,
) -> SOFollower:
    """Return two follower arms as one robot, not connected. The calibrations' names are ID_left and ID_right.

    Args:
        left_arm_config, right_arm_config: the arms; the names of their joints and cameras begin with `left_` and `right_`.
        id, calibration_dir, max_step, limits, max_action_age: see `make_follower`.
        cameras: cameras of no arm, whose names stay as they are.

    Raises:
        ConfigError: invalid settings, or a damaged calibration file.
    """
    parts, own = [], {}
    for side, config, name, flag in sides(FollowerArm, "robot", id, left_arm_config, right_arm_config):
        parts.append(_Part(f"{side}_", config, name, calibration_dir, flag))
        made = make_cameras(config.cameras, f"{flag}.cameras")
        own[side] = {f"{side}_{camera}": device for camera, device in made.items()}
    shared = make_cameras(cameras or {}, "--robot.cameras")
    everywhere = {**own["left"], **shared, **own["right"]}  # LeRobot's order
    if len(everywhere) < len(own["left"]) + len(own["right"]) + len(shared):
        raise ConfigError(
            "A camera of --robot.cameras has the name of an arm's camera (left_… or right_…): give it another."
        )
    return SOFollower("bi_so_follower", parts, everywhere, max_step, limits or {}, max_action_age)

"""LeRobot's robots and teleoperators: its drivers, smolact's names, and a gate before the motors.

Names and order are those of `lerobot-record`: an observation's numbers become `observation.state` in the driver's order, an
image `observation.images.NAME`. Calibrations stay in LeRobot's folder.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smolact.errors import FeatureError, RobotError, did_you_mean
from smolact.robots.base import Observation, Robot, RobotFeatures
from smolact.robots.lerobot_drivers import ROBOT, TELEOPERATOR, make_driver, translated
from smolact.robots.lerobot_hardware import (
    connect,
    is_gripper,
    known_ranges,
    known_units,
    parts,
    release,
)
from smolact.robots.safety import MAX_AGE_S, MAX_STEP, Gate, choose_steps, make_limits
from smolact.types import ACTION, IMAGES, STATE


class LeRobotRobot:
    """A robot with a LeRobot driver.

    Args:
        driver: LeRobot's robot, not connected.
        type_name: the requested type.
        max_step: the largest change of a joint in one tick, in its units, for all or by name; 0 for none. None: `MAX_STEP` for
            joints, none for grippers (which close at once) and velocities.
        limits: ranges of some numbers of the action by name, in place of calibration's or driver's.
        max_action_age: the maximum age of a chunk's observation, in seconds.

    Attributes:
        gate: checks every action before the driver; its limits are known once connected.
    """

    def __init__(
        self,
        driver: Any,
        type_name: str,
        *,
        max_step: float | Mapping[str, float] | None = None,
        limits: Mapping[str, tuple[float, float]] | None = None,
        max_action_age: float = MAX_AGE_S,
    ) -> None:
        self.driver, self.type_name = driver, type_name
        self._max_step, self._ranges, self._max_age = max_step, dict(limits or {}), max_action_age
        self._features = features_of(driver, self.who)
        self.gate = self._make_gate()

    @property
    def name(self) -> str:
        """LeRobot's name of the robot in a dataset (`so_follower` for an SO-101)."""
        return str(self.driver.name)

    @property
    def features(self) -> RobotFeatures:
        """The observation and action features, with limits once they are known for every number."""
        low, high = self.gate.limits.low, self.gate.limits.high
        known = bool((np.isfinite(low) & np.isfinite(high)).all())
        limits = tuple(zip(low.tolist(), high.tolist(), strict=True)) if known else None
        return replace(self._features, limits=limits)

    @property
    def who(self) -> str:
        """The robot's name in messages."""
        return f"robot '{self.type_name}'"

    def connect(self) -> None:
        """Open port and cameras, and read one observation.

        Raises:
            RobotError: port, motors or a camera do not answer, or it is not calibrated; nothing is left open.
            UnsafeActionError: a joint stands outside its limits; nothing is left open.
            MissingDependencyError: a package of the driver is not installed.
        """
        connect(self.driver, self.who, "robot")
        try:
            self.gate.limits = (
                self._make_gate().limits
            )  # the gate stays the same object, which sources of actions hold
            state = self.get_observation().get(STATE, np.zeros(0, np.float32))
            by_name = dict(zip(self._features.vectors.get(STATE, ()), state, strict=True))
            self.gate.position = np.array(
                [by_name.get(name, math.nan) for name in self._features.action], np.float32
            )
            self.gate.check_position()
        except BaseException:
            self.disconnect()
            raise

    def get_observation(self) -> Observation:
        """Return `observation.state` (D,) float32 and cameras (H, W, 3) uint8.

        Raises:
            RobotError: robot or camera does not answer, or the observation does not match its declaration.
        """
        with translated(self.who, "Is it plugged in and powered?"):
            values = self.driver.get_observation()
        return to_batch_keys(values, self._features, self.who)

    def send_action(self, action: NDArray[Any]) -> NDArray[Any]:
        """Move. Returns the action as sent, (A,) float32: the driver may limit it further (`max_relative_target`).

        Raises:
            UnsafeActionError: the action is not finite, out of limits, or too far from the last one; nothing was sent.
            RobotError: the robot does not answer.
        """
        (safe,) = self.gate.check_chunk(np.asarray(action)[None])
        goal = {name: float(value) for name, value in zip(self._features.action, safe, strict=True)}
        with translated(self.who, "Is it plugged in and powered?"):
            sent = self.driver.send_action(goal) or {}
        # A driver reports the numbers that it changed; it sent the others unchanged.
        self.gate.position = np.array([sent.get(name, value) for name, value in goal.items()], np.float32)
        return np.array(self.gate.position)

    def disconnect(self) -> None:
        """Close motors, port and cameras, even if some are unplugged."""
        release(self.driver, self.who)

    def camera_ages(self) -> dict[str, float]:
        """Return the age in seconds of each camera's newest frame, by batch key, if it has timestamps."""
        now, ages = time.perf_counter(), {}  # the clock of LeRobot's cameras
        for prefix, part in parts(self.driver):
            for name, camera in (getattr(part, "cameras", None) or {}).items():
                key = next(
                    (
                        key
                        for key in (f"{IMAGES}.{prefix}{name}", f"{IMAGES}.{name}")
                        if key in self._features.cameras
                    ),
                    None,
                )
                taken = getattr(camera, "latest_timestamp", None)
                if key and taken is not None:
                    ages[key] = now - taken
        return ages

    def _make_gate(self) -> Gate:
        names = self._features.action
        ranges = {name: bounds for name, bounds in known_ranges(self.driver).items() if name in names}
        steps = {
            name: MAX_STEP for name in names if name.endswith(".pos") and not is_gripper(self.driver, name)
        }
        steps = choose_steps(names, steps, self._max_step)
        return Gate(make_limits(names, ranges | self._ranges, steps, self._max_age))


class LeRobotTeleoperator:
    """A teleoperator with a LeRobot driver: a leader arm, whose numbers are the robot's actions.

    Args:
        driver: LeRobot's teleoperator, not connected.
        type_name: the requested type.
    """

    def __init__(self, driver: Any, type_name: str) -> None:
        self.driver, self.type_name = driver, type_name
        self._names: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """LeRobot's name of the type."""
        return str(self.driver.name)

    @property
    def who(self) -> str:
        """The teleoperator's name in messages."""
        return f"teleoperator '{self.type_name}'"

    def connect(self, robot: Robot) -> None:
        """Open its port, to drive the connected `robot`.

        Raises:
            RobotError: it does not answer, is not calibrated, or lacks numbers of the robot's action.
        """
        with translated(self.who):
            names = named_numbers(self.driver.action_features)
        missing = [name for name in robot.features.action if name not in names]
        if missing:
            raise RobotError(
                f"The {self.who} can't drive robot '{robot.name}': it gives {', '.join(names) or 'no named numbers'}, "
                f"and the robot also takes {', '.join(missing)}.{did_you_mean(missing[0], names)}"
            )
        connect(self.driver, self.who, "teleop")
        self._names = robot.features.action

    def get_action(self, observation: Observation) -> NDArray[Any]:
        """Return the leader's position, (A,) float32, in the robot's units.

        Raises:
            RobotError: it does not answer.
        """
        with translated(self.who, "Is it plugged in and powered?"):
            values = self.driver.get_action()
        return vector(values, self._names, self.who)

    def disconnect(self) -> None:
        """Close its port, even if it is unplugged."""
        release(self.driver, self.who)


def make_robot(
    type_name: str,
    *,
    max_step: float | Mapping[str, float] | None = None,
    limits: Mapping[str, tuple[float, float]] | None = None,
    max_action_age: float = MAX_AGE_S,
    **settings: Any,
) -> LeRobotRobot:
    """Make a LeRobot robot by type; `settings` are LeRobot's (`id`, `port`, `cameras`, …), the others the gate's.

    Raises:
        ConfigError: an unknown type or setting, or an invalid value.
        MissingDependencyError: LeRobot, or a package of this driver, is not installed.
    """
    driver = make_driver(ROBOT, type_name, settings)
    return LeRobotRobot(driver, type_name, max_step=max_step, limits=limits, max_action_age=max_action_age)


def make_teleoperator(type_name: str, **settings: Any) -> LeRobotTeleoperator:
    """Make a LeRobot teleoperator by type. Raises as `make_robot` does."""
    return LeRobotTeleoperator(make_driver(TELEOPERATOR, type_name, settings), type_name)


def features_of(driver: Any, label: str) -> RobotFeatures:
    """Return a driver's features under batch keys, in LeRobot's storage order.

    Raises:
        FeatureError: a camera does not return colour images.
    """
    with translated(label):
        observed, actions = dict(driver.observation_features), dict(driver.action_features)
    cameras = {
        f"{IMAGES}.{name}": tuple(shape) for name, shape in observed.items() if isinstance(shape, tuple)
    }
    for key, shape in cameras.items():
        if len(shape) != 3 or shape[2] != 3 or not all(isinstance(size, int) and size > 0 for size in shape):
            raise FeatureError(
                f"The {label} declares {key} as {shape}: expected (height, width, 3). Depth is not recorded here; "
                "switch it off (use_depth: false) and give width, height and fps of every camera."
            )
    state = named_numbers(observed)
    action = named_numbers(actions)
    units = {key: known_units(driver, names) for key, names in ((STATE, state), (ACTION, action))}
    return RobotFeatures(
        action=action,
        vectors={STATE: state} if state else {},
        cameras={key: (shape[0], shape[1]) for key, shape in cameras.items()},
        units={key: unit for key, unit in units.items() if unit},
    )


def named_numbers(features: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of a driver's numbers: `{name: float, …}`, or `{"names": {name: index, …}, …}`."""
    names = features.get("names")
    if isinstance(names, Mapping) and all(isinstance(index, int) for index in names.values()):
        return tuple(names)
    return tuple(name for name, kind in features.items() if kind is float)


def vector(values: Mapping[str, Any], names: tuple[str, ...], label: str) -> NDArray[np.float32]:
    """Return the numbers `names` of a driver's values, (len(names),) float32.

    Raises:
        RobotError: a number is missing or not finite.
    """
    try:
        array = np.array([values[name] for name in names], np.float32)
    except KeyError as error:
        raise RobotError(
            f"The {label} gave no '{error.args[0]}'; it gave {', '.join(map(str, values))}."
        ) from error
    except (TypeError, ValueError) as error:
        raise RobotError(f"The {label} gave something that is no number: {error}.") from error
    if not np.isfinite(array).all():
        invalid = [name for name, value in zip(names, array, strict=True) if not np.isfinite(value)]
        raise RobotError(f"The {label} gave numbers that are not finite: {', '.join(invalid)}.")
    return array


def to_batch_keys(values: Mapping[str, Any], features: RobotFeatures, label: str) -> Observation:
    """Convert a driver's observation to batch keys.

    Raises:
        RobotError: a number or image is missing, or does not match `features`.
    """
    observation: Observation = {key: vector(values, names, label) for key, names in features.vectors.items()}
    for key, (height, width) in features.cameras.items():
        image = values.get(key.removeprefix(f"{IMAGES}."))
        if not isinstance(image, np.ndarray) or image.shape != (height, width, 3) or image.dtype != np.uint8:
            found = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
            raise RobotError(f"The {label} declared {key} as uint8 ({height}, {width}, 3) and gave {found}.")
        observation[key] = image
    return observation

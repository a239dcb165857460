"""LeRobot's robots and teleoperators under our protocols: its drivers, our names, and a gate before the motors.

Names and their order are those that `lerobot-record` stores: an observation's numbers become `observation.state` in the
order that the driver declares them, a picture `observation.images.NAME`. Calibrations stay where LeRobot keeps them.
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
    closes_at_once,
    connect,
    known_ranges,
    known_units,
    parts,
    release,
)
from smolact.robots.safety import MAX_AGE_S, Gate, make_limits
from smolact.types import ACTION, IMAGES, STATE

MAX_STEP = 30.0
"""Degrees, or percent of the range, that a joint may move in one tick: above what a hand does, below a jump."""


class LeRobotRobot:
    """A robot of LeRobot's.

    Args:
        driver: LeRobot's robot, not connected.
        type_name: the type that it was asked for by.
        max_step: the largest change of a joint in one tick, in its units, for all or by name; 0 for none. None:
            `MAX_STEP` for joints, none for grippers (which close at once) and velocities.
        limits: the range of some numbers of the action by name, in place of what calibration or driver say.
        max_action_age: the oldest observation that a chunk may answer, in seconds.

    Attributes:
        gate: what every action passes before the driver gets it; limits are known once it is connected.
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
        """What LeRobot calls it in a dataset (`so_follower` for an SO-101)."""
        return str(self.driver.name)

    @property
    def features(self) -> RobotFeatures:
        """What it sees and takes; with limits once they are known for every number."""
        low, high = self.gate.limits.low, self.gate.limits.high
        known = bool((np.isfinite(low) & np.isfinite(high)).all())
        limits = tuple(zip(low.tolist(), high.tolist(), strict=True)) if known else None
        return replace(self._features, limits=limits)

    @property
    def who(self) -> str:
        """What messages call it."""
        return f"robot '{self.type_name}'"

    def connect(self) -> None:
        """Open port and cameras, and look once.

        Raises:
            RobotError: port, motors or a camera do not answer, or it is not calibrated; nothing is left open.
            MissingDependencyError: a package of the driver is not installed.
        """
        connect(self.driver, self.who, "robot")
        try:
            self.gate = self._make_gate()
            state = self.get_observation().get(STATE, np.zeros(0, np.float32))
        except BaseException:
            self.disconnect()
            raise
        found = dict(zip(self._features.vectors.get(STATE, ()), state, strict=True))
        self.gate.position = np.array(
            [found.get(name, math.nan) for name in self._features.action], np.float32
        )

    def get_observation(self) -> Observation:
        """What it sees now: `observation.state` (D,) float32, cameras (H, W, 3) uint8.

        Raises:
            RobotError: it does not answer, a camera is silent, or something else came than was declared.
        """
        with translated(self.who, "Is it plugged in and powered?"):
            found = self.driver.get_observation()
        return to_batch_keys(found, self._features, self.who)

    def send_action(self, action: NDArray[Any]) -> NDArray[Any]:
        """Move. Returns what was really sent, (A,) float32: the driver may limit it further (`max_relative_target`).

        Raises:
            UnsafeActionError: the action is not finite, out of limits, or too far from the last one; nothing was sent.
            RobotError: the robot does not answer.
        """
        (safe,) = self.gate.check_chunk(np.asarray(action)[None])
        asked = {name: float(value) for name, value in zip(self._features.action, safe, strict=True)}
        with translated(self.who, "Is it plugged in and powered?"):
            sent = self.driver.send_action(asked) or {}
        # A driver reports the numbers that it changed on their way; what it does not report went out as asked.
        self.gate.position = np.array([sent.get(name, value) for name, value in asked.items()], np.float32)
        return np.array(self.gate.position)

    def disconnect(self) -> None:
        """Let go of motors, port and cameras, also when some of them are gone."""
        release(self.driver, self.who)

    def camera_ages(self) -> dict[str, float]:
        """Seconds since each camera's newest picture was taken, by batch key; only cameras that keep that time."""
        now, ages = time.perf_counter(), {}  # LeRobot's cameras note the time of this clock
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
        ranges = {name: found for name, found in known_ranges(self.driver).items() if name in names}
        steps = {
            name: MAX_STEP
            for name in names
            if name.endswith(".pos") and not closes_at_once(self.driver, name)
        }
        if isinstance(self._max_step, Mapping):
            steps |= self._max_step
        elif self._max_step is not None:
            steps = dict.fromkeys(names, self._max_step)
        steps = {name: math.inf if step == 0 else step for name, step in steps.items()}
        return Gate(make_limits(names, ranges | self._ranges, steps, self._max_age))


class LeRobotTeleoperator:
    """A teleoperator of LeRobot's: a leader arm, whose numbers are the robot's actions.

    Args:
        driver: LeRobot's teleoperator, not connected.
        type_name: the type that it was asked for by.
    """

    def __init__(self, driver: Any, type_name: str) -> None:
        self.driver, self.type_name = driver, type_name
        self._names: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Its type, as LeRobot calls it."""
        return str(self.driver.name)

    @property
    def who(self) -> str:
        """What messages call it."""
        return f"teleoperator '{self.type_name}'"

    def connect(self, robot: Robot) -> None:
        """Open its port, to drive `robot`, which is connected.

        Raises:
            RobotError: it does not answer, is not calibrated, or its numbers are not those of the robot's action.
        """
        with translated(self.who):
            ours = named_numbers(self.driver.action_features)
        missing = [name for name in robot.features.action if name not in ours]
        if missing:
            raise RobotError(
                f"The {self.who} can't drive robot '{robot.name}': it gives {', '.join(ours) or 'no named numbers'}, "
                f"and the robot also takes {', '.join(missing)}.{did_you_mean(missing[0], ours)}"
            )
        connect(self.driver, self.who, "teleop")
        self._names = robot.features.action

    def get_action(self, observation: Observation) -> NDArray[Any]:
        """Where the hand is, (A,) float32, in the robot's units.

        Raises:
            RobotError: it does not answer.
        """
        with translated(self.who, "Is it plugged in and powered?"):
            found = self.driver.get_action()
        return vector(found, self._names, self.who)

    def disconnect(self) -> None:
        """Let go of it, also when it is gone."""
        release(self.driver, self.who)


def make_robot(
    type_name: str,
    *,
    max_step: float | Mapping[str, float] | None = None,
    limits: Mapping[str, tuple[float, float]] | None = None,
    max_action_age: float = MAX_AGE_S,
    **settings: Any,
) -> LeRobotRobot:
    """A robot of LeRobot's by type; `settings` are LeRobot's (`id`, `port`, `cameras`, …), the others the gate's.

    Raises:
        ConfigError: a type or setting that there is not, or that can't be.
        MissingDependencyError: LeRobot, or a package that this driver needs, is not installed.
    """
    driver = make_driver(ROBOT, type_name, settings)
    return LeRobotRobot(driver, type_name, max_step=max_step, limits=limits, max_action_age=max_action_age)


def make_teleoperator(type_name: str, **settings: Any) -> LeRobotTeleoperator:
    """A teleoperator of LeRobot's by type. Raises as `make_robot` does."""
    return LeRobotTeleoperator(make_driver(TELEOPERATOR, type_name, settings), type_name)


def features_of(driver: Any, who: str) -> RobotFeatures:
    """A driver's features under batch keys, in the order that LeRobot stores.

    Raises:
        FeatureError: a camera that gives no colour pictures.
    """
    with translated(who):
        seen, taken = dict(driver.observation_features), dict(driver.action_features)
    cameras = {f"{IMAGES}.{name}": tuple(shape) for name, shape in seen.items() if isinstance(shape, tuple)}
    for key, shape in cameras.items():
        if len(shape) != 3 or shape[2] != 3 or not all(isinstance(size, int) and size > 0 for size in shape):
            raise FeatureError(
                f"The {who} declares {key} as {shape}: expected (height, width, 3). Depth is not recorded here; "
                "switch it off (use_depth: false) and give width, height and fps of every camera."
            )
    state = named_numbers(seen)
    action = named_numbers(taken)
    units = {key: known_units(driver, names) for key, names in ((STATE, state), (ACTION, action))}
    return RobotFeatures(
        action=action,
        vectors={STATE: state} if state else {},
        cameras={key: (shape[0], shape[1]) for key, shape in cameras.items()},
        units={key: found for key, found in units.items() if found},
    )


def named_numbers(features: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of a driver's numbers: `{name: float, …}`, or `{"names": {name: place, …}, …}` as some teleoperators say."""
    names = features.get("names")
    if isinstance(names, Mapping) and all(isinstance(place, int) for place in names.values()):
        return tuple(names)
    return tuple(name for name, kind in features.items() if kind is float)


def vector(found: Mapping[str, Any], names: tuple[str, ...], who: str) -> NDArray[np.float32]:
    """The numbers `names` of what a driver gave, (len(names),) float32.

    Raises:
        RobotError: one is missing or not finite.
    """
    try:
        values = np.array([found[name] for name in names], np.float32)
    except KeyError as error:
        raise RobotError(
            f"The {who} gave no '{error.args[0]}'; it gave {', '.join(map(str, found))}."
        ) from error
    except (TypeError, ValueError) as error:
        raise RobotError(f"The {who} gave something that is no number: {error}.") from error
    if not np.isfinite(values).all():
        wrong = [name for name, value in zip(names, values, strict=True) if not np.isfinite(value)]
        raise RobotError(f"The {who} gave numbers that are not finite: {', '.join(wrong)}.")
    return values


def to_batch_keys(found: Mapping[str, Any], features: RobotFeatures, who: str) -> Observation:
    """A driver's observation under batch keys.

    Raises:
        RobotError: a number or picture is missing, or another than `features` say.
    """
    observation: Observation = {key: vector(found, names, who) for key, names in features.vectors.items()}
    for key, (height, width) in features.cameras.items():
        picture = found.get(key.removeprefix(f"{IMAGES}."))
        if (
            not isinstance(picture, np.ndarray)
            or picture.shape != (height, width, 3)
            or picture.dtype != np.uint8
        ):
            came = (
                f"{picture.dtype} {picture.shape}"
                if isinstance(picture, np.ndarray)
                else type(picture).__name__
            )
            raise RobotError(f"The {who} declared {key} as uint8 ({height}, {width}, 3) and gave {came}.")
        observation[key] = picture
    return observation

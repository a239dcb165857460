"""The interface of robots and teleoperators: four methods, named features, and a gate.

Robots use batch keys: an observation is `observation.state` and further vectors as (D,) float32, and cameras as (H, W, 3)
uint8; an action is one vector (A,) float32, in the robot's own units.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from smolact.errors import RobotError
from smolact.robots.safety import Gate

Observation = dict[str, NDArray[Any]]


class ConnectionLostError(RobotError):
    """A robot's cable was pulled or is noisy, or it lost its power. A `Reconnectable` robot can be connected again."""


class CameraTimeoutError(RobotError):
    """A camera gives no new pictures. A recording ends with the frames that it has."""


@dataclass(frozen=True)
class RobotFeatures:
    """Named observation and action features of a robot.

    Attributes:
        action: names of the action's numbers, in order: (A,).
        vectors: batch key to the names of its numbers, such as `observation.state: (shoulder_pan.pos, …)`.
        cameras: batch key to (height, width).
        limits: (lowest, highest) of each number of the action, if known.
        units: `action`, or a batch key of `vectors`, to the units of its numbers, if known: `degrees`, …
    """

    action: tuple[str, ...]
    vectors: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    cameras: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    limits: tuple[tuple[float, float], ...] | None = None
    units: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@runtime_checkable
class Robot(Protocol):
    """A real or simulated robot. `features` may be read before `connect`."""

    @property
    def name(self) -> str:
        """The robot's type in a dataset (`robot_type`)."""
        ...

    @property
    def features(self) -> RobotFeatures:
        """The observation and action features."""
        ...

    @property
    def gate(self) -> Gate:
        """The gate that checks every action (`smolact.robots.safety`)."""
        ...

    def connect(self) -> None:
        """Connect to the hardware.

        Raises:
            RobotError: port, camera or motors do not answer; the message lists the devices present.
        """
        ...

    def get_observation(self) -> Observation:
        """Return the present observation, with every key of `features`."""
        ...

    def send_action(self, action: NDArray[Any]) -> NDArray[Any]:
        """Move. Returns the action as sent, (A,) float32, after the robot's own limits."""
        ...

    def disconnect(self) -> None:
        """Leave the robot in a safe state. May be called at any time, more than once."""
        ...


@runtime_checkable
class EpisodicRobot(Robot, Protocol):
    """A robot that software can reset: a simulation."""

    def reset(self, episode: int) -> str | None:
        """Start an episode; returns the scene's instruction, if it has one."""
        ...

    @property
    def episode_is_over(self) -> bool:
        """Whether the episode ended by itself."""
        ...

    @property
    def is_success(self) -> bool:
        """Whether the episode's goal was reached."""
        ...


@runtime_checkable
class Reconnectable(Protocol):
    """A robot, or a source of its actions, that can be connected again after a `ConnectionLostError`."""

    def drop(self) -> None:
        """Close what is lost, so that the system can give its name again."""
        ...

    def reconnect(self) -> None:
        """Connect again, without letting go of what the robot holds if its motors kept their power.

        Raises:
            RobotError: it still does not answer.
        """
        ...


@runtime_checkable
class Teleoperator(Protocol):
    """A device or script that drives a robot."""

    @property
    def name(self) -> str:
        """The teleoperator's type."""
        ...

    def connect(self, robot: Robot) -> None:
        """Connect, to drive `robot`.

        Raises:
            RobotError: the teleoperator does not answer, or does not fit the robot.
        """
        ...

    def get_action(self, observation: Observation) -> NDArray[Any]:
        """Return the action to send now, (A,) float32, in the robot's units."""
        ...

    def disconnect(self) -> None:
        """Disconnect. May be called at any time, more than once."""
        ...


def gate_of(robot: object) -> Gate:
    """Return the robot's gate.

    Raises:
        RobotError: the robot has no gate.
    """
    gate = getattr(robot, "gate", None)
    if not isinstance(gate, Gate):
        raise RobotError(
            f"The robot '{getattr(robot, 'name', type(robot).__name__)}' has no gate, and nothing is sent to a robot without one. "
            "Give it an attribute `gate`: Gate(make_limits(names, ranges, steps)) of smolact.robots.safety."
        )
    return gate


def move(robot: Robot, action: ArrayLike) -> NDArray[np.float32]:
    """Send an action through the robot's gate. Every control loop calls this, so none bypasses the gate.

    Args:
        robot: connected.
        action: (A,), in the robot's units.

    Returns:
        the action as sent, (A,) float32.

    Raises:
        UnsafeActionError: the gate refuses the action; nothing was sent.
        RobotError: the robot has no gate, or does not answer.
    """
    gate = gate_of(robot)
    (safe,) = gate.check_chunk(np.asarray(action)[None])
    sent = np.array(robot.send_action(safe), np.float32)
    gate.position = sent
    return sent

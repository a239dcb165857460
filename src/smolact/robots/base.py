"""What a robot and a teleoperator are to smolact: four methods, names for every number, and a gate.

A robot under this interface speaks in batch keys: an observation is `observation.state` and further vectors as (D,)
float32, and cameras as (H, W, 3) uint8; an action is one vector (A,) float32, in the robot's own units.
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


@dataclass(frozen=True)
class RobotFeatures:
    """What a robot sees and takes, by name.

    Attributes:
        action: names of the action's numbers, in order: (A,).
        vectors: batch key to the names of its numbers, such as `observation.state: (shoulder_pan.pos, …)`.
        cameras: batch key to (height, width).
        limits: (lowest, highest) of each number of the action, where the robot tells.
        units: `action`, or a batch key of `vectors`, to the units of its numbers, where the robot tells: `degrees`, …
    """

    action: tuple[str, ...]
    vectors: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    cameras: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    limits: tuple[tuple[float, float], ...] | None = None
    units: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@runtime_checkable
class Robot(Protocol):
    """A robot, real or simulated. `features` may be read before `connect`."""

    @property
    def name(self) -> str:
        """What it is called in a dataset (`robot_type`)."""
        ...

    @property
    def features(self) -> RobotFeatures:
        """What it sees and takes."""
        ...

    @property
    def gate(self) -> Gate:
        """What every action passes before the robot gets it (`smolact.robots.safety`)."""
        ...

    def connect(self) -> None:
        """Make it ready.

        Raises:
            RobotError: port, camera or motors do not answer; the message names what is there.
        """
        ...

    def get_observation(self) -> Observation:
        """What it sees now: every key of `features`."""
        ...

    def send_action(self, action: NDArray[Any]) -> NDArray[Any]:
        """Move. Returns the action that was really sent, (A,) float32, after the robot's own limits."""
        ...

    def disconnect(self) -> None:
        """Leave it safe. May be called at any time, more than once."""
        ...


@runtime_checkable
class EpisodicRobot(Robot, Protocol):
    """A robot whose world can be set back by software: a simulation."""

    def reset(self, episode: int) -> str | None:
        """Begin an episode; returns the instruction that the scene asks for, if it has one."""
        ...

    @property
    def episode_is_over(self) -> bool:
        """Whether the episode ended by itself."""
        ...

    @property
    def is_success(self) -> bool:
        """Whether its goal was reached."""
        ...


@runtime_checkable
class Teleoperator(Protocol):
    """What a person (or a script) drives a robot with."""

    @property
    def name(self) -> str:
        """Its type."""
        ...

    def connect(self, robot: Robot) -> None:
        """Make it ready to drive that robot.

        Raises:
            RobotError: it can't, or does not fit the robot.
        """
        ...

    def get_action(self, observation: Observation) -> NDArray[Any]:
        """The action to send now, (A,) float32, in the robot's units."""
        ...

    def disconnect(self) -> None:
        """Let go. May be called at any time, more than once."""
        ...


def gate_of(robot: object) -> Gate:
    """The gate of a robot.

    Raises:
        RobotError: it has none.
    """
    gate = getattr(robot, "gate", None)
    if not isinstance(gate, Gate):
        raise RobotError(
            f"The robot '{getattr(robot, 'name', type(robot).__name__)}' has no gate, and nothing is sent to a robot without one. "
            "Give it an attribute `gate`: Gate(make_limits(names, ranges, steps)) of smolact.robots.safety."
        )
    return gate


def move(robot: Robot, action: ArrayLike) -> NDArray[np.float32]:
    """Send an action through the robot's gate. Every loop moves a robot by this, so that none can forget the gate.

    Args:
        robot: connected.
        action: (A,), in the robot's units.

    Returns:
        what was really sent, (A,) float32.

    Raises:
        UnsafeActionError: the gate refuses it; nothing was sent.
        RobotError: the robot has no gate, or does not answer.
    """
    gate = gate_of(robot)
    (safe,) = gate.check_chunk(np.asarray(action)[None])
    sent = np.array(robot.send_action(safe), np.float32)
    gate.position = sent
    return sent

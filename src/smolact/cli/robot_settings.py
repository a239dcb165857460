"""`--robot.…` and `--teleop.…`: which robot and which teleoperator, and the settings of the chosen types."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from smolact.errors import ConfigError
from smolact.settings import rest, setting

if TYPE_CHECKING:
    from smolact.robots.base import Robot, Teleoperator

ROBOTS: dict[str, Callable[..., Any]] = {}
"""Robots that are built in: type to what makes one; its parameters are the settings. The others are LeRobot's."""
TELEOPERATORS: dict[str, Callable[..., Any]] = {}
"""Teleoperators that are built in."""


def _robot_fields(given: Mapping[str, Any]) -> type | None:
    from smolact.robots.factory import robot_settings

    return robot_settings(given["type"], ROBOTS) if given.get("type") else None


def _teleoperator_fields(given: Mapping[str, Any]) -> type | None:
    from smolact.robots.factory import teleoperator_settings

    return teleoperator_settings(given["type"], TELEOPERATORS) if given.get("type") else None


@dataclass
class RobotSection:
    """Which robot."""

    type: str | None = setting(None, "Which robot, such as so101_follower; `smolact robot info` lists them.")
    settings: dict[str, Any] = rest(_robot_fields)

    def make(self) -> Robot:
        """The robot, not connected.

        Raises:
            ConfigError: no type was given (those that there are, are listed), or a setting can't be.
        """
        from smolact.robots.factory import given_settings, make_robot, robot_types

        if self.type is None:
            raise ConfigError(
                f"Say which robot: --robot.type=NAME. There are: {_listed(robot_types(ROBOTS))}."
            )
        return make_robot(self.type, ROBOTS, **given_settings(self.settings))


@dataclass
class TeleoperatorSection:
    """What drives the robot by hand."""

    type: str | None = setting(
        None, "Which teleoperator, such as so101_leader; `smolact robot info` lists them."
    )
    settings: dict[str, Any] = rest(_teleoperator_fields)

    def make(self) -> Teleoperator:
        """The teleoperator, not connected. Raises as `RobotSection.make` does."""
        from smolact.robots.factory import given_settings, make_teleoperator, teleoperator_types

        if self.type is None:
            types = _listed(teleoperator_types(TELEOPERATORS))
            raise ConfigError(f"Say which teleoperator: --teleop.type=NAME. There are: {types}.")
        return make_teleoperator(self.type, TELEOPERATORS, **given_settings(self.settings))


def _listed(types: tuple[str, ...]) -> str:
    from smolact.robots.lerobot_drivers import EXAMPLES, NEEDS, is_installed

    if is_installed():
        return ", ".join(types)
    return (
        f"{', '.join(types) or 'none built in'}; and LeRobot's ({EXAMPLES}), which is not installed. {NEEDS}"
    )

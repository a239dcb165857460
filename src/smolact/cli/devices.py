"""The sections `--robot.…` and `--teleop.…`: the robot, the teleoperator, and their own settings."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from smolact import unsupported
from smolact.cli.progress import announce
from smolact.errors import ConfigError
from smolact.flags import CONFIG_PATH, flag_value
from smolact.registry import ROBOTS, TELEOPERATORS, Registry
from smolact.settings import open_section, setting

if TYPE_CHECKING:
    from smolact.robots.base import Robot, Teleoperator


def robot_fields(section: Mapping[str, Any]) -> type | None:
    """Return the settings class of the robot's type, for `--robot.…`."""
    from smolact.robots.factory import robot_settings

    return _fields(section.get("type"), ROBOTS, robot_settings)


def teleop_fields(section: Mapping[str, Any]) -> type | None:
    """Return the settings class of the teleoperator's type, for `--teleop.…`."""
    from smolact.robots.factory import teleoperator_settings

    return _fields(section.get("type"), TELEOPERATORS, teleoperator_settings)


def _fields(
    kind: str | None, registry: Registry, settings: Callable[[str, Registry], type | None]
) -> type | None:
    if not kind:
        return None
    from smolact.robots.lerobot_drivers import is_installed

    if kind not in registry and "lerobot" not in sys.modules and is_installed():
        announce("Loading LeRobot …")  # which takes seconds
    return settings(kind, registry)


@dataclass
class RobotSection:
    """The robot; further settings are those of its type (id, port, cameras …)."""

    UNSUPPORTED: ClassVar = unsupported.PLUGIN

    type: str | None = setting(
        None, "so101_follower, sim, … or one of LeRobot's robots; `smolact robot info` lists them."
    )
    settings: dict[str, Any] = open_section(robot_fields)

    @property
    def is_simulation(self) -> bool:
        """Whether the type is a simulation, which has instructions and no clock of its own."""
        from smolact.robots.factory import is_simulation

        return is_simulation(str(self.type), ROBOTS)

    def make(self) -> Robot:
        """Return the robot, not connected.

        Raises:
            SmolactError: the robot can't be created.
        """
        from smolact.robots.factory import given_settings, make_robot

        return make_robot(str(self.type), ROBOTS, **given_settings(self.settings))


@dataclass
class TeleopSection:
    """The teleoperator; further settings are those of its type (id, port …)."""

    UNSUPPORTED: ClassVar = unsupported.PLUGIN

    type: str | None = setting(
        None, "so101_leader, expert (scripted, in simulation), keyboard, gamepad, … or one of LeRobot's."
    )
    settings: dict[str, Any] = open_section(teleop_fields)

    def make(self) -> Teleoperator:
        """Return the teleoperator, not connected.

        Raises:
            SmolactError: the teleoperator can't be created.
        """
        from smolact.robots.factory import given_settings, make_teleoperator

        return make_teleoperator(str(self.type), TELEOPERATORS, **given_settings(self.settings))


def needs_robot(argv: Sequence[str], command: str) -> None:
    """Raise a `ConfigError` unless the arguments name a robot, or a file that may name one.

    Raises:
        ConfigError: neither is named; the message lists the robot types.
    """
    if flag_value(argv, "robot.type") is not None or flag_value(argv, CONFIG_PATH) is not None:
        return
    from smolact.robots import lerobot_drivers
    from smolact.robots.factory import robot_types

    more = (
        "" if lerobot_drivers.is_installed() else f" ({lerobot_drivers.NEEDS} for {lerobot_drivers.EXAMPLES})"
    )
    raise ConfigError(
        f"`smolact {command}` needs a robot: --robot.type=NAME. There are: {', '.join(robot_types(ROBOTS))}{more}."
    )

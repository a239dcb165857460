"""`smolact robot calibrate`: measure the joints of a robot or of a leader arm, in LeRobot's way, to LeRobot's file."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from smolact.cli.command import command
from smolact.cli.devices import RobotSection, TeleopSection, needs_robot
from smolact.errors import ConfigError
from smolact.settings import setting

if TYPE_CHECKING:
    from smolact.robots.base import Robot, Teleoperator

USAGE = "smolact robot calibrate --robot.type=so101_follower --robot.port=PORT --robot.id=NAME"


@dataclass
class DeviceConfig:
    """A robot or a teleoperator."""

    robot: RobotSection = field(default_factory=RobotSection)
    teleop: TeleopSection = field(default_factory=TeleopSection)

    def make(self, argv: Sequence[str], command: str) -> Robot | Teleoperator:
        """Return the device, not connected.

        Raises:
            ConfigError: neither is named, or both are.
        """
        if self.teleop.type is None:
            needs_robot(argv, command)
            return self.robot.make()
        if self.robot.type is not None:
            raise ConfigError("One at a time: give --robot.type or --teleop.type, not both.")
        return self.teleop.make()


@dataclass
class CalibrateConfig(DeviceConfig):
    """Settings of `smolact robot calibrate`: a robot or a teleoperator."""

    new: bool = setting(False, "Measure again, without asking whether the calibration that is there will do.")


@command(CalibrateConfig, USAGE)
def run(config: CalibrateConfig, argv: Sequence[str]) -> None:
    """Calibrate the device and print the calibration file."""
    device = config.make(argv, "robot calibrate")

    from smolact.cli.robot_guide import TerminalGuide, arms_of
    from smolact.robots.lerobot import LeRobotRobot, LeRobotTeleoperator
    from smolact.robots.lerobot_hardware import calibrate as calibrate_lerobot
    from smolact.robots.so_arm.setup import calibrate

    if isinstance(device, (LeRobotRobot, LeRobotTeleoperator)):
        sys.stdout.write(f"The calibration is in {calibrate_lerobot(device.driver, device.who)}\n")
        return
    for arm in arms_of(device, "calibrate").values():
        arm.open()
        try:
            calibrate(arm, TerminalGuide(), new=config.new)
        finally:
            arm.close()
        sys.stdout.write(f"The calibration of the {arm.owner} is in {arm.file}\n")

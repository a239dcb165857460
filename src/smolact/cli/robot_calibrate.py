"""`smolact robot calibrate`: measure the joints of a robot or of a leader arm, in LeRobot's way, to LeRobot's file."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from smolact.cli.command import command
from smolact.cli.devices import RobotSection, TeleopSection, needs_robot
from smolact.errors import ConfigError

USAGE = "smolact robot calibrate --robot.type=so101_follower --robot.port=PORT --robot.id=NAME"


@dataclass
class CalibrateConfig:
    """Settings of `smolact robot calibrate`: a robot or a teleoperator."""

    robot: RobotSection = field(default_factory=RobotSection)
    teleop: TeleopSection = field(default_factory=TeleopSection)


@command(CalibrateConfig, USAGE)
def run(config: CalibrateConfig, argv: Sequence[str]) -> None:
    """Calibrate the device and print the calibration file."""
    if config.teleop.type is None:
        needs_robot(argv, "robot calibrate")
    elif config.robot.type is not None:
        raise ConfigError("One at a time: give --robot.type or --teleop.type, not both.")

    from smolact.robots.lerobot import LeRobotRobot, LeRobotTeleoperator
    from smolact.robots.lerobot_hardware import calibrate

    device = config.teleop.make() if config.teleop.type is not None else config.robot.make()
    if not isinstance(device, (LeRobotRobot, LeRobotTeleoperator)):
        raise ConfigError(f"'{device.name}' has nothing to calibrate.")
    sys.stdout.write(f"The calibration is in {calibrate(device.driver, device.who)}\n")

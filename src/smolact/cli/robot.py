"""`smolact robot COMMAND …`: the set-up commands of a robot, one module per command."""

from __future__ import annotations

from collections.abc import Sequence

from smolact.cli.main import Command, by_name, run_group
from smolact.cli.recordings import terminated_is_interrupted
from smolact.errors import ConfigError

COMMANDS = by_name(
    Command("info", "types, ports, and what a robot sees and takes", "smolact.cli.robot_info"),
    Command("find-port", "which serial port a robot is at", "smolact.cli.robot_find_port"),
    Command(
        "find-cameras", "the cameras that answer, and a picture of each", "smolact.cli.robot_find_cameras"
    ),
    Command("setup-motors", "give the motors of a new arm their ids", "smolact.cli.robot_setup_motors"),
    Command("calibrate", "measure the joints of a robot or leader arm", "smolact.cli.robot_calibrate"),
    Command("teleoperate", "drive a robot by hand, recording nothing", "smolact.cli.robot_teleoperate"),
    Command(
        "find-joint-limits",
        "the ranges to which an arm is moved by hand",
        "smolact.cli.robot_find_joint_limits",
    ),
    Command("doctor", "whether an arm's motors, bus and calibration are well", "smolact.cli.robot_doctor"),
)


def run(argv: Sequence[str]) -> int:
    """Run one of the commands, or list them. On SIGTERM the motors are released as after Ctrl-C."""
    if argv and argv[0] == "setup-can":
        raise ConfigError(
            "A CAN interface is that of a robot which LeRobot drives. Set it up with lerobot-setup-can."
        )
    with terminated_is_interrupted():
        return run_group("robot", "Set up a robot.", COMMANDS, argv)

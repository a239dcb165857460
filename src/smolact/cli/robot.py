"""`smolact robot COMMAND …`: what is plugged in, and what comes before recording; one module a command."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from smolact.cli.main import DONE, MISUSED, Command, command_rows, find_command

COMMANDS = {
    command.name: command
    for command in (
        Command("info", "types, ports, and what a robot sees and takes", "smolact.cli.robot_info"),
        Command("find-port", "which serial port a robot is at", "smolact.cli.robot_find_port"),
        Command(
            "find-cameras", "the cameras that answer, and a picture of each", "smolact.cli.robot_find_cameras"
        ),
        Command("calibrate", "measure the joints of a robot or leader arm", "smolact.cli.robot_calibrate"),
        Command("teleoperate", "drive a robot by hand, recording nothing", "smolact.cli.robot_teleoperate"),
    )
}


def run(argv: Sequence[str]) -> int:
    """Run one of the commands, or list them."""
    if not argv or argv[0] in ("--help", "-h", "help"):
        sys.stdout.write(
            f"Set up a robot.\n\nusage: smolact robot COMMAND --name=value …\n\n{command_rows(COMMANDS)}\n\n"
            "smolact robot COMMAND --help lists a command's settings.\n"
        )
        return DONE if argv else MISUSED
    return find_command(argv[0], COMMANDS, "robot").run(argv[1:])

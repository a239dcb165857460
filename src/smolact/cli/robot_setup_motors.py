"""`smolact robot setup-motors`: give the motors of a new arm their ids, one after the other."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from smolact.cli.command import command
from smolact.cli.robot_calibrate import DeviceConfig

USAGE = "smolact robot setup-motors --robot.type=so101_follower --robot.port=PORT"


@command(DeviceConfig, USAGE)
def run(config: DeviceConfig, argv: Sequence[str]) -> None:
    """Set the ids and baud rates of the motors, each connected alone."""
    device = config.make(argv, "robot setup-motors")

    from smolact.cli.robot_guide import TerminalGuide, arms_of
    from smolact.robots.so_arm.setup import setup_motors

    for arm in arms_of(device, "setup-motors").values():
        setup_motors(arm, TerminalGuide())
    sys.stdout.write(
        "The motors have their ids. Connect them in a chain, from the board to the gripper, and run: smolact robot calibrate\n"
    )

"""`smolact robot find-joint-limits`: move an arm by hand wherever it may go; prints the flag that keeps it there."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from smolact.cli.command import command
from smolact.cli.robot_calibrate import DeviceConfig

USAGE = "smolact robot find-joint-limits --robot.type=so101_follower --robot.port=PORT --robot.id=NAME"


@command(DeviceConfig, USAGE)
def run(config: DeviceConfig, argv: Sequence[str]) -> None:
    """Print `--robot.limits` with the ranges through which the arm was moved."""
    device = config.make(argv, "robot find-joint-limits")

    from smolact.cli.robot_guide import TerminalGuide, arms_of
    from smolact.robots.so_arm.setup import find_joint_limits

    arms = dict(arms_of(device, "find-joint-limits"))
    try:
        for arm in arms.values():
            arm.open()
        found = find_joint_limits(arms, TerminalGuide())
    finally:
        for arm in arms.values():
            arm.close()
    ranges = ", ".join(f"{name}: [{low:.1f}, {high:.1f}]" for name, (low, high) in found.items())
    sys.stdout.write(f'--robot.limits="{{{ranges}}}"\n')

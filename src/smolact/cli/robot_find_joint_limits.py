"""`smolact robot find-joint-limits`: move an arm by hand wherever it may go; prints the flag that keeps it there."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from smolact import unsupported
from smolact.cli.command import command
from smolact.cli.robot_calibrate import DeviceConfig
from smolact.errors import ConfigError
from smolact.settings import setting

USAGE = "smolact robot find-joint-limits --robot.type=so101_follower --robot.port=PORT --robot.id=NAME"


@dataclass
class FindJointLimitsConfig(DeviceConfig):
    """Settings of `smolact robot find-joint-limits`."""

    UNSUPPORTED: ClassVar = unsupported.FIND_JOINT_LIMITS

    teleop_time_s: float | None = setting(None, "How long, in seconds; without it until Enter.")


@command(FindJointLimitsConfig, USAGE)
def run(config: FindJointLimitsConfig, argv: Sequence[str]) -> None:
    """Print `--robot.limits` with the ranges through which the arm was moved."""
    if config.teleop_time_s is not None and not config.teleop_time_s > 0:
        raise ConfigError(f"--teleop_time_s={config.teleop_time_s:g}: it must be above 0.")
    device = config.make(argv, "robot find-joint-limits")

    from smolact.cli.robot_guide import TerminalGuide, arms_of
    from smolact.robots.so_arm.setup import find_joint_limits

    arms = dict(arms_of(device, "find-joint-limits"))
    try:
        for arm in arms.values():
            arm.open()
        found = find_joint_limits(arms, TerminalGuide(config.teleop_time_s))
    finally:
        for arm in arms.values():
            arm.close()
    ranges = ", ".join(f"{name}: [{low:.1f}, {high:.1f}]" for name, (low, high) in found.items())
    sys.stdout.write(f'--robot.limits="{{{ranges}}}"\n')

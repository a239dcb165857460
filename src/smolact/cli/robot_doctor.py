"""`smolact robot doctor`: look at an arm's supply, temperatures, bus and calibration; moves nothing."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from smolact.cli.command import command
from smolact.cli.main import DONE, FAILED
from smolact.cli.robot_calibrate import DeviceConfig
from smolact.errors import ConfigError
from smolact.settings import setting

USAGE = "smolact robot doctor --robot.type=so101_follower --robot.port=PORT --robot.id=NAME"


@dataclass
class RobotDoctorConfig(DeviceConfig):
    """Settings of `smolact robot doctor`."""

    readings: int = setting(1000, "Readings of all motors, whose time is measured.")
    live: bool = setting(False, "Show the motors' table until Enter, and measure nothing.")


@command(RobotDoctorConfig, USAGE)
def run(config: RobotDoctorConfig, argv: Sequence[str]) -> int:
    """Print each motor's state, the bus's timing and what is wrong; return `FAILED` if something is."""
    if config.readings < 1:
        raise ConfigError(f"--readings is {config.readings}: it must be above 0.")
    device = config.make(argv, "robot doctor")

    from rich.console import Console

    from smolact.cli.progress import progress_bar
    from smolact.cli.robot_guide import TerminalGuide, arms_of, make_table
    from smolact.robots.so_arm.doctor import examine
    from smolact.robots.so_arm.setup import MotorState, motor_states

    console, is_well = Console(highlight=False), True
    for prefix, arm in arms_of(device, "doctor").items():
        arm.open()
        try:
            if config.live:
                TerminalGuide().watch(
                    f"The {arm.owner}. Enter ends it.",
                    MotorState.COLUMNS,
                    lambda: [state.row() for state in motor_states(arm, prefix)],  # noqa: B023
                )
                continue
            with progress_bar(config.readings, "readings", first=f"Reading the {arm.owner} …") as advance:
                report = examine(arm, prefix, config.readings, lambda _: advance())
        finally:
            arm.close(torque_off=False)
        console.print(make_table(MotorState.COLUMNS, [motor.row() for motor in report.motors]))
        timing = report.timing
        console.print(
            f"{timing.readings} readings: p50 {timing.p50:.1f} ms, p99 {timing.p99:.1f} ms, {timing.lost:.1f} of 1000 repeated"
        )
        for finding in report.findings:
            console.print(f"wrong  {finding}", soft_wrap=True)
        if not report.findings:
            console.print(f"The {arm.owner} is well.")
        is_well = is_well and not report.findings
    sys.stdout.flush()
    return DONE if is_well else FAILED

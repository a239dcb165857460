"""`smolact robot teleoperate`: drive a robot by hand, recording nothing."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import ClassVar

from smolact import unsupported
from smolact.cli.command import command
from smolact.cli.devices import RobotSection, TeleopSection, needs_robot
from smolact.cli.main import print_errors_at_once
from smolact.errors import ConfigError
from smolact.parsing import parse
from smolact.settings import setting

USAGE = (
    "smolact robot teleoperate --robot.type=so101_follower --robot.port=PORT --robot.id=NAME "
    "--teleop.type=so101_leader --teleop.port=PORT --teleop.id=NAME"
)


@dataclass
class TeleoperateConfig:
    """What `smolact robot teleoperate` takes."""

    UNSUPPORTED: ClassVar = unsupported.TELEOPERATE

    robot: RobotSection = field(default_factory=RobotSection)
    teleop: TeleopSection = field(default_factory=TeleopSection)
    fps: int = setting(60, "Ticks a second.")
    teleop_time_s: float | None = setting(None, "How long, in seconds; without it until Ctrl-C.")


@command(TeleoperateConfig, USAGE)
def run(argv: Sequence[str]) -> int:
    """Drive, and say how well the rate was held."""
    needs_robot(argv, "robot teleoperate")
    config = parse(TeleoperateConfig, argv)
    if config.robot.type is None or config.teleop.type is None:
        raise ConfigError(
            "Say what drives the robot: --teleop.type=NAME. `smolact robot info` lists what there is."
        )

    from smolact.robots.incremental_teleop import KeyboardTeleoperator
    from smolact.robots.keys import Keys
    from smolact.runtime.controls import Controls
    from smolact.runtime.teleoperation import Ticks, teleoperate

    robot, teleoperator = config.robot.make(), config.teleop.make()
    latest = Ticks(0, 0, 0.0)

    def note(ticks: Ticks) -> None:
        nonlocal latest
        latest = ticks
        if ticks.count % max(1, config.fps) == 0:
            sys.stderr.write(f"\r{ticks.rate:6.1f} Hz, {ticks.late} of {ticks.count} ticks late ")
            sys.stderr.flush()

    with ExitStack() as stack:
        stack.callback(robot.disconnect)
        robot.connect()
        stack.callback(teleoperator.disconnect)
        stack.enter_context(print_errors_at_once())
        teleoperator.connect(robot)
        controls = Controls(arrows_drive=True)
        keys = stack.enter_context(Keys(controls.press))
        controls.is_operated = keys.is_listening
        if isinstance(teleoperator, KeyboardTeleoperator):
            keys.listen(teleoperator.press)
        sys.stderr.write(
            f"The robot follows now. {'space: pause · q' if keys.is_listening else 'Ctrl-C'}: end\n"
        )
        try:
            teleoperate(robot, teleoperator, config.fps, config.teleop_time_s, note, controls=controls)
        except KeyboardInterrupt:
            sys.stderr.write("\n")
    sys.stdout.write(f"{latest.count} ticks at {latest.rate:.1f} Hz, {latest.late} late\n")
    return 0

"""`smolact robot find-port`: which serial port a robot is at, by unplugging it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from smolact.cli.help import asks_for_help, help_text
from smolact.cli.parsing import parse
from smolact.errors import RobotError
from smolact.settings import setting

USAGE = "smolact robot find-port"


@dataclass
class FindPortConfig:
    """Settings of `smolact robot find-port`."""

    list: bool = setting(False, "Only list the ports that there are, and ask nothing.")


def run(argv: Sequence[str]) -> int:
    """Find and print the robot's port."""
    if asks_for_help(argv):
        sys.stdout.write(help_text(FindPortConfig, USAGE, (__doc__ or "").strip(), argv) + "\n")
        return 0
    config, _ = parse(FindPortConfig, argv)

    from smolact.robots.ports import port_that_goes, ports_present, serial_ports

    if config.list:
        if not serial_ports():
            raise RobotError(f"{ports_present()} Plug the robot in, give it power, and run this again.")
        sys.stdout.write("\n".join(serial_ports()) + "\n")
        return 0
    port = port_that_goes(_ask)
    sys.stdout.write(f"The robot is at {port}. Plug it in again; in commands write --robot.port={port}\n")
    return 0


def _ask(ports: list[str]) -> None:
    sys.stderr.write(f"Ports: {', '.join(ports)}\nUnplug the robot's USB cable, then press Enter. ")
    sys.stderr.flush()
    if not sys.stdin.readline():
        raise RobotError("Nobody answers: run this in a terminal, or list the ports with --list.")

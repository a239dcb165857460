"""`smolact robot find-port`: which serial port a robot is at, by unplugging it."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from smolact.cli.command import command
from smolact.errors import RobotError
from smolact.settings import setting

USAGE = "smolact robot find-port"


@dataclass
class FindPortConfig:
    """Settings of `smolact robot find-port`."""

    list: bool = setting(False, "Only list the ports that there are, and ask nothing.")


@command(FindPortConfig, USAGE)
def run(config: FindPortConfig) -> None:
    """Find and print the robot's port."""

    from smolact.robots.ports import port_that_goes, ports_present, serial_ports

    if config.list:
        if not serial_ports():
            raise RobotError(f"{ports_present()} Plug the robot in, give it power, and run this again.")
        sys.stdout.write("\n".join(serial_ports()) + "\n")
        return
    port = port_that_goes(_ask)
    sys.stdout.write(f"The robot is at {port}. Plug it in again; in commands write --robot.port={port}\n")


def _ask(ports: list[str]) -> None:
    sys.stderr.write(f"Ports: {', '.join(ports)}\nUnplug the robot's USB cable, then press Enter. ")
    sys.stderr.flush()
    if not sys.stdin.readline():
        raise RobotError("Nobody answers: run this in a terminal, or list the ports with --list.")

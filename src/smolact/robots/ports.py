"""What is plugged in: serial ports and video devices, by what the system shows of them. Needs no driver."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

from smolact.errors import RobotError

DEVICES = Path("/dev")
SERIAL = ("ttyACM*", "ttyUSB*", "ttyAMA*", "ttyTHS*", "tty.usb*", "tty.wchusb*", "tty.SLAB*")
"""Names that USB adapters and boards' own ports have on Linux, on Jetsons and Raspberry Pis, and on macOS."""


def serial_ports() -> list[str]:
    """The serial ports that a robot can be at."""
    if sys.platform == "win32":
        if importlib.util.find_spec("serial") is None:
            return []
        comports = importlib.import_module("serial.tools.list_ports").comports
        return sorted(str(port.device) for port in comports())
    return sorted(str(path) for pattern in SERIAL for path in DEVICES.glob(pattern))


def video_devices() -> list[str]:
    """The video devices that Linux shows; empty on systems that only count cameras."""
    return sorted(str(path) for path in DEVICES.glob("video*"))


def ports_present() -> str:
    """A sentence that lists the serial ports."""
    ports = serial_ports()
    return (
        f"Serial ports here: {', '.join(ports)}."
        if ports
        else "There is no serial port here: is it plugged in?"
    )


def cameras_present() -> str:
    """A sentence that lists the video devices."""
    devices = video_devices()
    if devices:
        return f"Video devices here: {', '.join(devices)}."
    return "There is no video device here." if sys.platform.startswith("linux") else ""


def port_that_goes(unplug: Callable[[list[str]], None]) -> str:
    """Which port a robot is at: the one that is gone after `unplug`, which is told the ports and returns when it is.

    Raises:
        RobotError: there is no port, none went, or several did.
    """
    before = serial_ports()
    if not before:
        raise RobotError(f"{ports_present()} Plug the robot in, give it power, and run this again.")
    unplug(before)
    gone = sorted(set(before) - set(serial_ports()))
    if len(gone) == 1:
        return gone[0]
    found = f"these are: {', '.join(gone)}" if gone else f"all are still there: {', '.join(before)}"
    raise RobotError(
        f"Expected one port to be gone, but {found}. Unplug the USB cable of one robot and nothing else."
    )

"""Serial ports and video devices that the operating system lists. Needs no driver."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

from smolact.errors import RobotError

DEVICES = Path("/dev")
SERIAL = ("ttyACM*", "ttyUSB*", "ttyAMA*", "ttyTHS*", "tty.usb*", "tty.wchusb*", "tty.SLAB*")
"""Names of USB adapters' and boards' own ports on Linux, Jetson, Raspberry Pi and macOS."""


def serial_ports() -> list[str]:
    """Return the serial ports that may belong to a robot."""
    if sys.platform == "win32":
        if importlib.util.find_spec("serial") is None:
            return []
        comports = importlib.import_module("serial.tools.list_ports").comports
        return sorted(str(port.device) for port in comports())
    return sorted(str(path) for pattern in SERIAL for path in DEVICES.glob(pattern))


def video_devices() -> list[str]:
    """Return the video devices on Linux; empty on other systems, which have no names for cameras."""
    return sorted(str(path) for path in DEVICES.glob("video*"))


def ports_present() -> str:
    """Return a sentence that lists the serial ports."""
    ports = serial_ports()
    return (
        f"Serial ports here: {', '.join(ports)}."
        if ports
        else "There is no serial port here: is it plugged in?"
    )


def cameras_present() -> str:
    """Return a sentence that lists the video devices."""
    devices = video_devices()
    if devices:
        return f"Video devices here: {', '.join(devices)}."
    return "There is no video device here." if sys.platform.startswith("linux") else ""


def port_that_goes(unplug: Callable[[list[str]], None]) -> str:
    """Return the robot's port: the one that disappears during `unplug`, which is called with the ports.

    Raises:
        RobotError: no port exists, none disappeared, or several did.
    """
    before = serial_ports()
    if not before:
        raise RobotError(f"{ports_present()} Plug the robot in, give it power, and run this again.")
    unplug(before)
    removed = sorted(set(before) - set(serial_ports()))
    if len(removed) == 1:
        return removed[0]
    result = f"these are: {', '.join(removed)}" if removed else f"all are still there: {', '.join(before)}"
    raise RobotError(
        f"Expected one port to be gone, but {result}. Unplug the USB cable of one robot and nothing else."
    )

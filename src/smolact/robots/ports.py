"""Serial ports and video devices that the operating system lists. Needs no driver."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smolact.errors import RobotError, optional_import

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


@dataclass(frozen=True)
class UsbAdapter:
    """The identity of a USB serial adapter, which it keeps when its port gets another name.

    Attributes:
        model: its vendor and product numbers.
        serial_number: its serial number; None for cheap adapters.
        location: the USB socket that it is plugged into.
    """

    model: tuple[int, int]
    serial_number: str | None
    location: str | None

    def find_port(self, port: str) -> str:
        """Return the adapter's port: `port`, its last one, where that is still right.

        Raises:
            RobotError: it is not plugged in, or several adapters could be it.
        """
        found = {
            name: adapter
            for name, adapter in usb_adapters().items()
            if adapter.model == self.model and adapter.serial_number == self.serial_number
        }
        if self.serial_number is None or len(found) > 1:
            found = {name: adapter for name, adapter in found.items() if adapter.location == self.location}
        if _device(port) in found:
            return port
        if len(found) == 1:
            return next(iter(found))
        known_by = f"serial number {self.serial_number}" if self.serial_number else "without a serial number"
        raise RobotError(
            f"The USB adapter that was at {port} ({known_by}, USB socket {self.location}) is not there. {ports_present()} Plug it "
            "into that socket, or begin again with its new port: `smolact robot find-port` finds it."
        )


def usb_adapters() -> dict[str, UsbAdapter]:
    """Return the USB serial adapters by port. Needs pyserial."""
    list_ports: Any = optional_import("serial.tools.list_ports", "so101")
    return {
        str(port.device): UsbAdapter((port.vid, port.pid), port.serial_number or None, port.location or None)
        for port in list_ports.comports()
        if port.vid is not None
    }


def adapter_at(port: str) -> UsbAdapter | None:
    """Return the USB adapter at a port; None for a port of another kind."""
    return usb_adapters().get(_device(port))


def _device(port: str) -> str:
    """Return the device that a link such as /dev/serial/by-id/… leads to."""
    return os.path.realpath(port) if port.startswith("/") else port


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

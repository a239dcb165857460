"""What stands behind a driver of LeRobot's: its arms, buses and cameras; opened without questions, closed in any state."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from smolact.errors import RobotError
from smolact.robots.lerobot_drivers import translated
from smolact.robots.ports import cameras_present, ports_present

logger = logging.getLogger(__name__)


def parts(driver: Any) -> Iterator[tuple[str, Any]]:
    """What holds motors and cameras, with the prefix that its names have: the driver itself, or its two arms."""
    arms = [(f"{side}_", getattr(driver, f"{side}_arm", None)) for side in ("left", "right")]
    yield from [(prefix, arm) for prefix, arm in arms if arm is not None] or [("", driver)]


def known_ranges(driver: Any) -> dict[str, tuple[float, float]]:
    """The ranges of joints that a driver declares, or that its calibration has measured: `NAME.pos` to (low, high)."""
    ranges: dict[str, tuple[float, float]] = {}
    for prefix, part in parts(driver):
        bus = getattr(part, "bus", None)
        for motor, details in (getattr(bus, "motors", None) or {}).items():
            found = _motor_range(bus, motor, details)
            if found is not None:
                ranges[f"{prefix}{motor}.pos"] = found
        declared = getattr(getattr(part, "config", None), "joint_limits", None) or {}
        ranges |= {
            f"{prefix}{motor}.pos": (float(low), float(high)) for motor, (low, high) in declared.items()
        }
    return ranges


def _motor_range(bus: Any, motor: str, details: Any) -> tuple[float, float] | None:
    mode = _norm_mode(details)
    if mode == "range_m100_100":
        return -100.0, 100.0
    if mode == "range_0_100":
        return 0.0, 100.0
    measured = (getattr(bus, "calibration", None) or {}).get(motor)
    resolution = getattr(bus, "model_resolution_table", {}).get(getattr(details, "model", None))
    if mode != "degrees" or measured is None or not resolution:
        return None
    half = (
        (measured.range_max - measured.range_min) / 2 * 360 / (resolution - 1)
    )  # 0° is the middle of its range
    return (-half, half) if half > 0 else None


def known_units(driver: Any, names: Sequence[str]) -> tuple[str, ...]:
    """The unit of each number, where a driver's motors say it of all: `degrees`, `range_m100_100`, `range_0_100`."""
    units = {
        f"{prefix}{motor}.pos": _norm_mode(details)
        for prefix, part in parts(driver)
        for motor, details in (getattr(getattr(part, "bus", None), "motors", None) or {}).items()
    }
    return tuple(units[name] for name in names) if all(units.get(name) for name in names) else ()


def _norm_mode(details: Any) -> str:
    mode = getattr(details, "norm_mode", "")
    return str(getattr(mode, "value", mode))


def closes_at_once(driver: Any, name: str) -> bool:
    """Whether it is a gripper: LeRobot scales those from 0 to 100."""
    for prefix, part in parts(driver):
        motors = getattr(getattr(part, "bus", None), "motors", None) or {}
        details = motors.get(name.removeprefix(prefix).removesuffix(".pos"))
        if name.startswith(prefix) and details is not None:
            return _norm_mode(details) == "range_0_100"
    return "gripper" in name


def connect(driver: Any, who: str, flag: str) -> None:
    """Connect a driver without any question; whatever was opened is closed again when it fails.

    Raises:
        RobotError: a port that is not there, a device that does not answer, or one that is not calibrated.
    """
    open_driver(driver, who)
    try:
        with translated(who):
            calibrated = driver.is_calibrated
        if calibrated is False:  # some teleoperators say None: there is nothing to calibrate
            unnamed = (
                f" No --{flag}.id was given, by which calibrations are kept." if driver.id is None else ""
            )
            raise RobotError(
                f"The {who} is not calibrated, or its motors hold another calibration than {calibration_file(driver)}. "
                f"Run: smolact robot calibrate --{flag}.type=… with the same settings.{unnamed}"
            )
    except BaseException:
        release(driver, who)
        raise


def open_driver(driver: Any, who: str) -> None:
    """Connect a driver, calibrated or not; whatever was opened is closed again when it fails.

    Raises:
        RobotError: a port that is not there, or a device that does not answer.
    """
    for port in ports_of(getattr(driver, "config", None)):
        if port.startswith("/dev/") and not Path(port).exists():
            raise RobotError(
                f"The {who} has port {port}, which is not there. {ports_present()} `smolact robot find-port` finds it."
            )
    try:
        with translated(who):
            asks = "calibrate" in inspect.signature(driver.connect).parameters
            driver.connect(calibrate=False) if asks else driver.connect()
    except RobotError as error:
        hint = _what_is_missing(driver)
        release(driver, who)
        raise RobotError(f"{error} {hint}".rstrip()) from error
    except BaseException:
        release(driver, who)
        raise


def calibrate(driver: Any, who: str) -> str:
    """Calibrate a driver, in its own words, which ask for the terminal. Returns where LeRobot keeps what was measured.

    Raises:
        RobotError: it does not answer, or there is no terminal to answer it.
    """
    open_driver(driver, who)
    try:
        with translated(who):
            driver.calibrate()
    finally:
        release(driver, who)
    return calibration_file(driver)


def ports_of(config: Any) -> list[str]:
    """The serial ports that a configuration names, also those of two arms."""
    inner = [getattr(config, f"{side}_arm_config", None) for side in ("left", "right")]
    return [str(one.port) for one in (config, *inner) if isinstance(getattr(one, "port", None), str)]


def _what_is_missing(driver: Any) -> str:
    """After a failure: which of its parts is not there, and what is."""
    for _, part in parts(driver):
        bus = getattr(part, "bus", None)
        if bus is not None and getattr(bus, "is_connected", True) is False:
            return f"{ports_present()} `smolact robot find-port` finds the right one."
        for name, camera in (getattr(part, "cameras", None) or {}).items():
            if getattr(camera, "is_connected", True) is False:
                return f"Camera '{name}' did not open. {cameras_present()} `smolact robot find-cameras` lists them."
    return ""


def calibration_file(driver: Any) -> str:
    """Where LeRobot keeps its calibration: one file, or one an arm."""
    files = [str(getattr(part, "calibration_fpath", "")) for _, part in parts(driver)]
    return " and ".join(file for file in files if file) or "its file"


def release(driver: Any, who: str) -> None:
    """Disconnect whatever is open. LeRobot's own `disconnect` refuses when a part is gone, and leaves the others on."""
    if _is_open(driver):
        _try(who, driver.disconnect)
    for _, part in parts(driver):
        bus: Any = getattr(part, "bus", None)
        if _is_open(bus) and not _try(who, bus.disconnect):
            _try(who, bus.disconnect, False)  # the motors no longer answer; the port is still to be closed
        for camera in (getattr(part, "cameras", None) or {}).values():
            if _is_open(camera):
                _try(who, camera.disconnect)


def _is_open(device: Any) -> bool:
    try:
        return bool(getattr(device, "is_connected", False))
    except Exception:  # it can't tell: closing it does no harm
        return True


def _try(who: str, close: Callable[..., Any], *arguments: Any) -> bool:
    try:
        close(*arguments)
    except Exception as error:  # the next device must still be let go
        logger.warning("The %s could not be let go of whole; its motors may still hold: %s", who, error)
        return False
    return True

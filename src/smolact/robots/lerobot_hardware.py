"""Hardware of LeRobot's drivers: arms, buses and cameras; opened without prompts, closed in any state."""

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
    """Yield the objects with motors and cameras, with their name prefix: the driver itself, or its two arms."""
    arms = [(f"{side}_", getattr(driver, f"{side}_arm", None)) for side in ("left", "right")]
    yield from [(prefix, arm) for prefix, arm in arms if arm is not None] or [("", driver)]


def known_ranges(driver: Any) -> dict[str, tuple[float, float]]:
    """Return the joint ranges declared by a driver or measured by its calibration: `NAME.pos` to (low, high)."""
    ranges: dict[str, tuple[float, float]] = {}
    for prefix, part in parts(driver):
        bus = getattr(part, "bus", None)
        for motor, details in (getattr(bus, "motors", None) or {}).items():
            bounds = _motor_range(bus, motor, details)
            if bounds is not None:
                ranges[f"{prefix}{motor}.pos"] = bounds
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
    half_range = (
        (measured.range_max - measured.range_min) / 2 * 360 / (resolution - 1)
    )  # 0° is the middle of the range
    return (-half_range, half_range) if half_range > 0 else None


def known_units(driver: Any, names: Sequence[str]) -> tuple[str, ...]:
    """Return each number's unit, if all are known: `degrees`, `range_m100_100`, `range_0_100`."""
    units = {
        f"{prefix}{motor}.pos": _norm_mode(details)
        for prefix, part in parts(driver)
        for motor, details in (getattr(getattr(part, "bus", None), "motors", None) or {}).items()
    }
    return tuple(units[name] for name in names) if all(units.get(name) for name in names) else ()


def _norm_mode(details: Any) -> str:
    mode = getattr(details, "norm_mode", "")
    return str(getattr(mode, "value", mode))


def is_gripper(driver: Any, name: str) -> bool:
    """Whether the number is a gripper's: LeRobot scales grippers from 0 to 100."""
    for prefix, part in parts(driver):
        motors = getattr(getattr(part, "bus", None), "motors", None) or {}
        details = motors.get(name.removeprefix(prefix).removesuffix(".pos"))
        if name.startswith(prefix) and details is not None:
            return _norm_mode(details) == "range_0_100"
    return "gripper" in name


def connect(driver: Any, label: str, flag: str) -> None:
    """Connect a driver without prompts; closes everything on failure.

    Raises:
        RobotError: the port is missing, or the device does not answer or is not calibrated.
    """
    open_driver(driver, label)
    try:
        with translated(label):
            calibrated = driver.is_calibrated
        if calibrated is False:  # None in teleoperators without calibration
            id_hint = (
                f" No --{flag}.id was given, by which calibrations are kept." if driver.id is None else ""
            )
            raise RobotError(
                f"The {label} is not calibrated, or its motors hold another calibration than {calibration_file(driver)}. "
                f"Run: smolact robot calibrate --{flag}.type=… with the same settings.{id_hint}"
            )
    except BaseException:
        release(driver, label)
        raise


def open_driver(driver: Any, label: str) -> None:
    """Connect a driver, calibrated or not; closes everything on failure.

    Raises:
        RobotError: the port is missing, or the device does not answer.
    """
    for port in ports_of(getattr(driver, "config", None)):
        if port.startswith("/dev/") and not Path(port).exists():
            raise RobotError(
                f"The {label} has port {port}, which is not there. {ports_present()} `smolact robot find-port` finds it."
            )
    try:
        with translated(label):
            has_calibrate = "calibrate" in inspect.signature(driver.connect).parameters
            driver.connect(calibrate=False) if has_calibrate else driver.connect()
    except RobotError as error:
        hint = _missing_part_hint(driver)
        release(driver, label)
        raise RobotError(f"{error} {hint}".rstrip()) from error
    except BaseException:
        release(driver, label)
        raise


def calibrate(driver: Any, label: str) -> str:
    """Run a driver's own interactive calibration in the terminal. Returns the path of LeRobot's calibration file.

    Raises:
        RobotError: the device does not answer, or no terminal is available.
    """
    open_driver(driver, label)
    try:
        with translated(label):
            driver.calibrate()
    finally:
        release(driver, label)
    return calibration_file(driver)


def ports_of(config: Any) -> list[str]:
    """Return the serial ports of a configuration, including those of two arms."""
    arms = [getattr(config, f"{side}_arm_config", None) for side in ("left", "right")]
    return [str(part.port) for part in (config, *arms) if isinstance(getattr(part, "port", None), str)]


def _missing_part_hint(driver: Any) -> str:
    """After a failure, describe the missing part and the devices present."""
    for _, part in parts(driver):
        bus = getattr(part, "bus", None)
        if bus is not None and getattr(bus, "is_connected", True) is False:
            return f"{ports_present()} `smolact robot find-port` finds the right one."
        for name, camera in (getattr(part, "cameras", None) or {}).items():
            if getattr(camera, "is_connected", True) is False:
                return f"Camera '{name}' did not open. {cameras_present()} `smolact robot find-cameras` lists them."
    return ""


def calibration_file(driver: Any) -> str:
    """Return the path of LeRobot's calibration: one file, or one per arm."""
    files = [str(getattr(part, "calibration_fpath", "")) for _, part in parts(driver)]
    return " and ".join(file for file in files if file) or "its file"


def release(driver: Any, label: str) -> None:
    """Disconnect all open devices. LeRobot's `disconnect` fails if a part is unplugged, and leaves the others on."""
    if _is_open(driver):
        _try_close(label, driver.disconnect)
    for _, part in parts(driver):
        bus: Any = getattr(part, "bus", None)
        if _is_open(bus) and not _try_close(label, bus.disconnect):
            _try_close(label, bus.disconnect, False)  # the motors no longer answer: only close the port
        for camera in (getattr(part, "cameras", None) or {}).values():
            if _is_open(camera):
                _try_close(label, camera.disconnect)


def _is_open(device: Any) -> bool:
    try:
        return bool(getattr(device, "is_connected", False))
    except Exception:  # unknown: closing does no harm
        return True


def _try_close(label: str, close: Callable[..., Any], *arguments: Any) -> bool:
    try:
        close(*arguments)
    except Exception as error:  # the next device must still be released
        logger.warning("The %s could not be let go of whole; its motors may still hold: %s", label, error)
        return False
    return True

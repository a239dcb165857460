"""Calibrations of arms: units and steps of each joint, and LeRobot's calibration files.

A calibration file is LeRobot's, at LeRobot's place, so an arm that was calibrated there is calibrated here and the other way
round. The conversions are LeRobot's too (`lerobot/motors/motors_bus.py`), to the step.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from enum import Enum
from pathlib import Path
from typing import Literal

from smolact.durable import replacing_file
from smolact.errors import ConfigError
from smolact.robots.feetech.registers import RESOLUTION

STEPS_PER_TURN = RESOLUTION - 1  # LeRobot's figure
NAMES = {"robots": "so_follower", "teleoperators": "so_leader"}
OLDER_NAMES = {
    "robots": ("so101_follower", "so100_follower"),
    "teleoperators": ("so101_leader", "so100_leader"),
}
"""The folders of LeRobot before it joined the classes of the two arms."""

DeviceKind = Literal["robots", "teleoperators"]


class JointUnit(Enum):
    """LeRobot's units of a joint: degrees from the middle of its range, or percent of its range."""

    DEGREES = "degrees"
    RANGE_M100_100 = "range_m100_100"
    RANGE_0_100 = "range_0_100"


@dataclass(frozen=True)
class MotorCalibration:
    """The calibration of one motor, by LeRobot's names.

    Attributes:
        id: the motor's id on the bus.
        drive_mode: 1 turns the direction of units in percent around.
        homing_offset: steps that the motor subtracts from its sensor's position.
        range_min, range_max: the joint's lowest and highest position, in steps.
    """

    id: int
    drive_mode: int
    homing_offset: int
    range_min: int
    range_max: int

    def to_unit(self, steps: int, unit: JointUnit) -> float:
        """Return a position in steps in a unit. Units in percent are held to the range."""
        low, high = self.range_min, self.range_max
        if unit is JointUnit.DEGREES:
            return (steps - (low + high) / 2) * 360 / STEPS_PER_TURN
        share = (min(high, max(low, steps)) - low) / (high - low)
        if unit is JointUnit.RANGE_M100_100:
            return -(share * 200 - 100) if self.drive_mode else share * 200 - 100
        return 100 - share * 100 if self.drive_mode else share * 100

    def to_steps(self, value: float, unit: JointUnit) -> int:
        """Return a position in a unit in steps, cut towards zero as LeRobot cuts it."""
        low, high = self.range_min, self.range_max
        if unit is JointUnit.DEGREES:
            return int(value * STEPS_PER_TURN / 360 + (low + high) / 2)
        if unit is JointUnit.RANGE_M100_100:
            held = min(100.0, max(-100.0, -value if self.drive_mode else value))
            return int((held + 100) / 200 * (high - low) + low)
        held = min(100.0, max(0.0, 100 - value if self.drive_mode else value))
        return int(held / 100 * (high - low) + low)

    def limits(self, unit: JointUnit) -> tuple[float, float]:
        """Return the lowest and the highest value of the joint in a unit."""
        if unit is JointUnit.DEGREES:
            half = (self.range_max - self.range_min) / 2 * 360 / STEPS_PER_TURN
            return -half, half
        return (-100.0, 100.0) if unit is JointUnit.RANGE_M100_100 else (0.0, 100.0)


Calibration = dict[str, MotorCalibration]


def calibration_file(kind: DeviceKind, name: str | None, folder: Path | None = None) -> Path:
    """Return the calibration file of a device.

    Args:
        kind: `robots` or `teleoperators`.
        name: its `id`; None stands for "None", as in LeRobot.
        folder: the folder, if it is not LeRobot's.

    Returns:
        the file, or where to write it if there is none. An older file of LeRobot's is returned if it is the only one.

    Raises:
        ConfigError: the name can't name a file.
    """
    if name is not None and (not name.strip() or set(name) & set("/\\")):
        raise ConfigError(
            f"The id '{name}' names the file of a calibration: it can't be empty or have a slash."
        )
    if folder is not None:
        return folder.expanduser() / f"{name}.json"
    base = lerobot_calibrations() / kind
    file = base / NAMES[kind] / f"{name}.json"
    older = [base / known / f"{name}.json" for known in OLDER_NAMES[kind]]
    return next((path for path in (file, *older) if path.is_file()), file)


def lerobot_calibrations() -> Path:
    """Return LeRobot's folder of calibrations, which three environment variables move."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    hugging_face = Path(os.environ.get("HF_HOME") or cache / "huggingface")
    lerobot = Path(os.environ.get("HF_LEROBOT_HOME") or hugging_face / "lerobot")
    return Path(os.environ.get("HF_LEROBOT_CALIBRATION") or lerobot / "calibration").expanduser()


def read_calibration(file: Path, motors: Mapping[str, int]) -> Calibration:
    """Read a calibration file.

    Args:
        file: the file; without it there is no calibration.
        motors: the names and ids that it must have.

    Returns:
        the calibration by motor; empty if there is no file.

    Raises:
        ConfigError: the file is no calibration of these motors.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The calibration {file} can't be read: {error}.") from error
    advice = "Put the right file there, or remove it and calibrate: smolact robot calibrate."
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"The calibration {file} is no JSON: {error}. {advice}") from error
    if not isinstance(found, dict) or found.keys() != motors.keys():
        names = ", ".join(found) if isinstance(found, dict) else type(found).__name__
        raise ConfigError(
            f"The calibration {file} should have the motors {', '.join(motors)}, found {names}. {advice}"
        )
    return {name: _decode(found[name], name, number, f"{file}", advice) for name, number in motors.items()}


def _decode(entry: object, name: str, number: int, file: str, advice: str) -> MotorCalibration:
    expected = [field.name for field in fields(MotorCalibration)]
    if not isinstance(entry, dict) or sorted(entry) != sorted(expected):
        raise ConfigError(
            f"The calibration {file} has for '{name}' {entry!r}: expected {', '.join(expected)}. {advice}"
        )
    if not all(isinstance(value, int) and not isinstance(value, bool) for value in entry.values()):
        raise ConfigError(f"The calibration {file} has for '{name}' {entry}: expected integers. {advice}")
    calibration = MotorCalibration(**entry)
    if calibration.id != number:
        raise ConfigError(
            f"The calibration {file} has id {calibration.id} for '{name}', which is motor {number} here. {advice}"
        )
    if abs(calibration.homing_offset) >= RESOLUTION // 2 or calibration.drive_mode not in (0, 1):
        raise ConfigError(
            f"The calibration {file} has for '{name}' homing_offset {calibration.homing_offset} and drive_mode {calibration.drive_mode}: "
            f"expected at most {RESOLUTION // 2 - 1} steps, and 0 or 1. {advice}"
        )
    if not 0 <= calibration.range_min < calibration.range_max < RESOLUTION:
        raise ConfigError(
            f"The calibration {file} has for '{name}' the range {calibration.range_min} to {calibration.range_max}: "
            f"expected two rising numbers from 0 to {RESOLUTION - 1}. {advice}"
        )
    return calibration


def write_calibration(calibration: Mapping[str, MotorCalibration], file: Path) -> None:
    """Write a calibration file in LeRobot's form, whole or not at all.

    Raises:
        WriteError: the file can't be written.
    """
    text = json.dumps({name: asdict(motor) for name, motor in calibration.items()}, indent=4)
    with replacing_file(file) as temporary:
        temporary.write_text(text, encoding="utf-8")

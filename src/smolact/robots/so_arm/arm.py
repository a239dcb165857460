"""One SO-100 or SO-101 arm on its bus: six motors, from connection to release. Followers and leaders are made of it.

The sequences are LeRobot's (`robots/so_follower`, `teleoperators/so_leader`), register by register, with one addition: the goal
is set to the present position before the torque is switched on, so that the arm can't move then.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from smolact.errors import RobotError
from smolact.robots.base import ConnectionLostError
from smolact.robots.feetech import packets, registers
from smolact.robots.feetech.bus import RETRIES, FeetechBus, NoReplyError
from smolact.robots.feetech.guard import TorqueGuard
from smolact.robots.so_arm.calibration import (
    Calibration,
    DeviceKind,
    JointUnit,
    MotorCalibration,
    calibration_file,
    read_calibration,
)

logger = logging.getLogger(__name__)

MOTORS = {
    "shoulder_pan": 1,
    "shoulder_lift": 2,
    "elbow_flex": 3,
    "wrist_flex": 4,
    "wrist_roll": 5,
    "gripper": 6,
}
GRIPPER, FULL_TURN = "gripper", "wrist_roll"
RELEASE_RETRIES = 5


@dataclass(frozen=True)
class Gains:
    """Gains of the motors' position controller."""

    p: int = 16
    i: int = 0
    d: int = 32


class SOArm:
    """Six motors with a calibration.

    Args:
        port: the serial port.
        owner: the device's name in messages.
        kind: whether the arm is a robot or a teleoperator, which decides where its calibration is.
        name: its `id`, the name of its calibration.
        calibration_dir: the folder of the calibration, if it is not LeRobot's.
        use_degrees: joints in degrees; False for percent of their range, -100 to 100. The gripper is 0 to 100.
        retries: how often a request is repeated before it fails.

    Attributes:
        bus: the motors.
        units: each joint's unit.
        file: the calibration file.
        calibration: the calibration in the file; empty without a file.

    Raises:
        ConfigError: the calibration file is damaged, or of another arm.
    """

    def __init__(
        self,
        port: str,
        owner: str,
        kind: DeviceKind,
        *,
        name: str | None = None,
        calibration_dir: Path | None = None,
        use_degrees: bool = True,
        retries: int = RETRIES,
    ) -> None:
        self.bus = FeetechBus(port, MOTORS, owner, retries=retries)
        self.owner, self.name, self.kind = owner, name, kind
        body = JointUnit.DEGREES if use_degrees else JointUnit.RANGE_M100_100
        self.units = {motor: JointUnit.RANGE_0_100 if motor == GRIPPER else body for motor in MOTORS}
        self.file = calibration_file(kind, name, calibration_dir)
        self.calibration: Calibration = read_calibration(self.file, MOTORS)
        self._guard: TorqueGuard | None = None
        self._holds = False

    @property
    def limits(self) -> dict[str, tuple[float, float]]:
        """The lowest and highest value of each joint, as far as they are known."""
        return {
            motor: self.calibration[motor].limits(unit)
            for motor, unit in self.units.items()
            if motor in self.calibration
        }

    def open(self) -> None:
        """Open the port and see that the six motors are there, of the right model and one firmware.

        Raises:
            RobotError: the port can't be opened, or a motor is missing or is another one. The port is closed again.
        """
        self.bus.open()
        try:
            self._check_motors()
        except BaseException:
            self.bus.close()
            raise

    def check_calibration(self) -> None:
        """Raise a `RobotError` unless the motors hold the calibration of the file."""
        flag = "robot" if self.kind == "robots" else "teleop"
        advice = f"Run: smolact robot calibrate --{flag}.type=… with the same settings."
        if not self.calibration:
            no_id = "" if self.name else f" No --{flag}.id was given, by which calibrations are kept."
            raise RobotError(f"The {self.owner} is not calibrated: there is no {self.file}.{no_id} {advice}")
        different = self.different_from_file()
        if different:
            raise RobotError(
                f"The {self.owner} holds another calibration than {self.file}: {', '.join(different)} differ. It was calibrated "
                f"elsewhere, a calibration was interrupted, or it is another arm. {advice}"
            )

    def different_from_file(self) -> list[str]:
        """Return the motors that hold another calibration than the file's; all of them without a file."""
        held = self.held_calibration()
        return [
            motor
            for motor, entry in held.items()
            if motor not in self.calibration
            or (entry.range_min, entry.range_max, entry.homing_offset)
            != (
                self.calibration[motor].range_min,
                self.calibration[motor].range_max,
                self.calibration[motor].homing_offset,
            )
        ]

    def held_calibration(self) -> Calibration:
        """Return the calibration that the motors hold. Their memory has no drive mode."""
        return {
            motor: MotorCalibration(
                id=number,
                drive_mode=0,
                range_min=self.bus.read(registers.MIN_POSITION, motor),
                range_max=self.bus.read(registers.MAX_POSITION, motor),
                homing_offset=self.bus.read(registers.HOMING_OFFSET, motor),
            )
            for motor, number in MOTORS.items()
        }

    def write_calibration(self, calibration: Calibration) -> None:
        """Write a calibration into the motors, whose torque must be off."""
        for motor, entry in calibration.items():
            self.bus.write(registers.HOMING_OFFSET, motor, entry.homing_offset)
            self.bus.write(registers.MIN_POSITION, motor, entry.range_min)
            self.bus.write(registers.MAX_POSITION, motor, entry.range_max)
        self.calibration = dict(calibration)

    def configure(self, gains: Gains | None = None) -> None:
        """Set the motors up for position control, without torque.

        Args:
            gains: a follower's, whose gripper is also kept from burning out; None for a leader.
        """
        self.release_torque()
        for motor in MOTORS:
            self.bus.write(registers.RETURN_DELAY, motor, 0)
            self.bus.write(registers.MAX_ACCELERATION, motor, 254)
            self.bus.write(registers.ACCELERATION, motor, 254)
            phase = self.bus.read(registers.PHASE, motor)
            if phase & 0x10:  # positions beyond one turn: LeRobot switches them off as well
                self.bus.write(registers.PHASE, motor, phase & ~0x10)
        for motor in MOTORS:
            self.bus.write(registers.OPERATING_MODE, motor, 0)
            if gains is None:
                continue
            self.bus.write(registers.P_COEFFICIENT, motor, gains.p)
            self.bus.write(registers.I_COEFFICIENT, motor, gains.i)
            self.bus.write(registers.D_COEFFICIENT, motor, gains.d)
            if motor == GRIPPER:  # half of the torque and of the current, a quarter when overloaded
                self.bus.write(registers.MAX_TORQUE, motor, 500)
                self.bus.write(registers.PROTECTION_CURRENT, motor, 250)
                self.bus.write(registers.OVERLOAD_TORQUE, motor, 25)

    def hold(self, *, guarded: bool = True) -> None:
        """Switch the torque on where the arm is. If `guarded`, it is switched off should this process be killed."""
        self.bus.sync_write(registers.GOAL_POSITION, self.bus.sync_read(registers.PRESENT_POSITION))
        if guarded and self._guard is None:
            off = packets.sync_write(
                registers.TORQUE_ENABLE.address,
                registers.TORQUE_ENABLE.size,
                dict.fromkeys(MOTORS.values(), 0),
            )
            self._guard = TorqueGuard(self.bus.fileno(), off)
        self._holds = True
        for motor in MOTORS:
            self.bus.write(registers.TORQUE_ENABLE, motor, 1)
            self.bus.write(registers.LOCK, motor, 1)

    def release_torque(self) -> None:
        """Switch the torque off, and open the motors' memory for writing."""
        for motor in MOTORS:
            self.bus.write(registers.TORQUE_ENABLE, motor, 0)
            self.bus.write(registers.LOCK, motor, 0)
        self._holds = False

    def positions(self) -> dict[str, float]:
        """Return the position of each joint, in its unit."""
        steps = self.bus.sync_read(registers.PRESENT_POSITION)
        return {
            motor: self.calibration[motor].to_unit(value, self.units[motor]) for motor, value in steps.items()
        }

    def set_goals(self, values: Mapping[str, float]) -> None:
        """Send each joint to a position, in its unit."""
        self.bus.sync_write(
            registers.GOAL_POSITION,
            {
                motor: self.calibration[motor].to_steps(value, self.units[motor])
                for motor, value in values.items()
            },
        )

    def close(self, *, torque_off: bool = True) -> None:
        """Switch the torque off, unless it is to stay, and close the port. May be called at any time, more than once.

        A motor that does not reply does not keep the others from being switched off.
        """
        if torque_off and self._holds and not self.bus.is_open:  # dropped: its cable may be back
            with contextlib.suppress(RobotError):
                self.bus.open()
        stuck = self._switch_off() if torque_off and self.bus.is_open else list(MOTORS)
        if stuck and torque_off and self._holds:
            logger.error(
                "The torque of %s of the %s could not be switched off: cut the arm's power.",
                ", ".join(stuck),
                self.owner,
            )
        self._holds = self._holds and not torque_off
        self.drop()

    def drop(self) -> None:
        """Close the port and leave the motors as they are."""
        if self._guard is not None:
            self._guard.dismiss()
            self._guard = None
        self.bus.close()

    def _switch_off(self) -> list[str]:
        """Switch the torque of every motor off; returns the motors that did not confirm it."""
        stuck = []
        try:
            self.bus.sync_write(registers.TORQUE_ENABLE, dict.fromkeys(MOTORS, 0))  # all at once, unconfirmed
            for motor in MOTORS:
                try:
                    self.bus.write(registers.TORQUE_ENABLE, motor, 0, retries=RELEASE_RETRIES)
                    self.bus.write(registers.LOCK, motor, 0, retries=RELEASE_RETRIES)
                except NoReplyError:
                    stuck.append(motor)
        except ConnectionLostError:
            return list(MOTORS)
        return stuck

    def _check_motors(self) -> None:
        models = {motor: self.bus.model(number) for motor, number in MOTORS.items()}
        missing = [f"{motor} (id {MOTORS[motor]})" for motor, model in models.items() if model is None]
        if missing:
            found = "None replies: is the arm powered?" if len(missing) == len(MOTORS) else ""
            raise RobotError(
                f"The {self.owner} at {self.bus.port} misses {', '.join(missing)}. {found or 'Look at the cable before the first of them.'} "
                "A new motor needs its id first: smolact robot setup-motors."
            )
        for motor, model in models.items():
            if model != registers.MODEL:
                raise RobotError(
                    f"The motor '{motor}' of the {self.owner} is of model {registers.MODELS.get(model or 0, model)}; an arm's motors are "
                    f"{registers.MODELS[registers.MODEL]}."
                )
        firmware = {
            motor: (
                self.bus.read(registers.FIRMWARE_MAJOR, motor),
                self.bus.read(registers.FIRMWARE_MINOR, motor),
            )
            for motor in MOTORS
        }
        if len(set(firmware.values())) > 1:
            found = ", ".join(f"{motor} {major}.{minor}" for motor, (major, minor) in firmware.items())
            raise RobotError(
                f"The motors of the {self.owner} have different firmware: {found}. Give all the same with Feetech's debugging software."
            )

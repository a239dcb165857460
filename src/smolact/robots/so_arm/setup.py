"""Setting an arm up: ids of new motors, calibration, joint limits, and what each motor says of itself.

Each function is a sequence of steps in which a person moves the arm; a `Guide` asks and shows.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from smolact.errors import RobotError
from smolact.robots.feetech import registers
from smolact.robots.feetech.bus import BAUD_RATE, FeetechBus
from smolact.robots.so_arm.arm import FULL_TURN, MOTORS, SOArm
from smolact.robots.so_arm.calibration import (
    STEPS_PER_TURN,
    Calibration,
    JointUnit,
    MotorCalibration,
    write_calibration,
)

MIDDLE = STEPS_PER_TURN // 2
SMALL_RANGE = 300
"""Steps (26°) below which a joint was hardly moved: the smallest range of an SO-101's joint is the gripper's, about 100°."""

Row = Sequence[str]


class Guide(Protocol):
    """Asks the person at the arm, and shows what happens."""

    def ask(self, question: str) -> str:
        """Return the answer, without its line end. Raises a `RobotError` if no person can answer."""
        ...

    def say(self, line: str) -> None:
        """Show a line."""
        ...

    def watch(self, title: str, columns: Row, rows: Callable[[], Sequence[Row]]) -> None:
        """Show the table of `rows()`, about 30 times a second, until the person presses Enter."""
        ...


def setup_motors(arm: SOArm, guide: Guide) -> None:
    """Give each motor of a new arm its id and the bus's baud rate; one motor is connected at a time.

    Raises:
        RobotError: the port can't be opened, or no person can answer.
    """
    arm.bus.open()
    try:
        for name, number in reversed(MOTORS.items()):
            while True:
                answer = guide.ask(
                    f"Connect the '{name}' motor to the board, and no other. Then press Enter (s leaves it as it is). "
                )
                if answer.strip().lower() == "s":
                    break
                try:
                    guide.say(_set_id(arm.bus, name, number))
                    break
                except RobotError as error:  # the person mends it and tries again
                    guide.say(f"{error}")
    finally:
        arm.bus.close()


def find_motor(bus: FeetechBus) -> tuple[int, int, int]:
    """Return the baud rate, id and model number of the only motor on the bus, and leave the bus at that rate.

    Raises:
        RobotError: there is none, or there are several.
    """
    for baud_rate in registers.BAUD_RATES:
        bus.set_baud_rate(baud_rate)
        ids = bus.broadcast_ping()
        if len(ids) > 1:
            raise RobotError(
                f"{len(ids)} motors reply (ids {', '.join(map(str, ids))}). Connect one alone: pull the cable to the next motor."
            )
        if ids:
            return baud_rate, ids[0], bus.model(ids[0]) or 0
    bus.set_baud_rate(BAUD_RATE)
    raise RobotError(
        "No motor replies at any baud rate. Look at its cable, at the power supply, and that the board's jumpers are on B (USB)."
    )


def _set_id(bus: FeetechBus, name: str, number: int) -> str:
    baud_rate, found, model = find_motor(bus)
    if model != registers.MODEL:
        raise RobotError(
            f"This motor is a {registers.MODELS.get(model, f'model {model}')}; an arm's are {registers.MODELS[registers.MODEL]}s. "
            "Connect the right one."
        )
    bus.write_id(registers.TORQUE_ENABLE, found, 0)
    bus.write_id(registers.LOCK, found, 0)
    # A motor may confirm with its new id or at its new rate: what counts is whether it replies there afterwards.
    with contextlib.suppress(RobotError):
        bus.write_id(registers.ID, found, number, retries=0)
    with contextlib.suppress(RobotError):
        bus.write_id(registers.BAUD_RATE, number, registers.BAUD_RATES.index(BAUD_RATE), retries=0)
    bus.set_baud_rate(BAUD_RATE)
    if bus.model(number) is None:
        raise RobotError(
            f"The motor had id {found} at {baud_rate} baud; it should have id {number} at {BAUD_RATE} baud now, and does not reply. "
            "Switch its power off and on, and try again."
        )
    bus.write_id(registers.LOCK, number, 1)
    before = "" if found == number else f" (it was {found})"
    return f"'{name}' is motor {number} now{before}."


def calibrate(arm: SOArm, guide: Guide, *, new: bool = False) -> None:
    """Measure an open arm's joints, write the calibration into the motors and to its file.

    Args:
        arm: the arm, open; its torque is off afterwards.
        guide: asks for the motions.
        new: measure even if there is a calibration; otherwise the person may take that.

    If it is interrupted, the motors get back the calibration that they held.

    Raises:
        RobotError: a motor does not reply, or no person can answer.
        WriteError: the file can't be written.
    """
    if arm.calibration and not new:
        answer = guide.ask(
            f"There is a calibration, {arm.file}. Enter writes it into the motors; c and Enter measures anew. "
        )
        if answer.strip().lower() != "c":
            arm.release_torque()
            arm.write_calibration(arm.calibration)
            return
    arm.release_torque()
    held = arm.held_calibration()
    try:
        calibration = _measure(arm, guide)
        write_calibration(calibration, arm.file)
    except BaseException:
        with contextlib.suppress(RobotError):  # the error that matters is the first one
            arm.write_calibration(held)
        raise
    arm.write_calibration(calibration)


def _measure(arm: SOArm, guide: Guide) -> Calibration:
    """Return a new calibration, whose offsets the motors hold."""
    for motor in MOTORS:
        arm.bus.write(registers.OPERATING_MODE, motor, 0)
    while True:
        guide.ask("Move every joint to the middle of its range, as well as you can, and press Enter. ")
        offsets = _set_middle(arm)
        lows, highs, problem = _measure_ranges(arm, guide)
        if not problem:
            return {
                motor: MotorCalibration(number, 0, offsets[motor], lows[motor], highs[motor])
                for motor, number in MOTORS.items()
            }
        guide.say(problem)


def _set_middle(arm: SOArm) -> dict[str, int]:
    """Make the present position of each motor the middle of its turn; returns the offsets."""
    for motor in MOTORS:
        arm.bus.write(registers.HOMING_OFFSET, motor, 0)
        arm.bus.write(registers.MIN_POSITION, motor, 0)
        arm.bus.write(registers.MAX_POSITION, motor, STEPS_PER_TURN)
    positions = arm.bus.sync_read(registers.PRESENT_POSITION)
    # The register holds 2047 to either side; 2048 is a step beside the middle.
    offsets = {motor: min(position - MIDDLE, MIDDLE) for motor, position in positions.items()}
    for motor, offset in offsets.items():
        arm.bus.write(registers.HOMING_OFFSET, motor, offset)
    return offsets


def _measure_ranges(arm: SOArm, guide: Guide) -> tuple[dict[str, int], dict[str, int], str]:
    """Return the lowest and highest position of each joint that the person reached, and what was wrong with the motion."""
    previous = arm.bus.sync_read(registers.PRESENT_POSITION)
    lows, highs = dict(previous), dict(previous)
    wrapped: set[str] = set()

    def rows() -> list[Row]:
        nonlocal previous
        positions = arm.bus.sync_read(registers.PRESENT_POSITION)
        for motor, position in positions.items():
            if abs(position - previous[motor]) > MIDDLE and motor != FULL_TURN:
                wrapped.add(motor)
            lows[motor], highs[motor] = min(lows[motor], position), max(highs[motor], position)
        previous = positions
        return [
            (
                motor,
                str(lows[motor]),
                str(positions[motor]),
                str(highs[motor]),
                _motion(highs[motor] - lows[motor]),
            )
            for motor in MOTORS
            if motor != FULL_TURN
        ]

    title = f"Move every joint but {FULL_TURN} from one end of its range to the other. Enter ends it."
    guide.watch(title, ("joint", "lowest", "now", "highest", "range"), rows)
    lows[FULL_TURN], highs[FULL_TURN] = 0, STEPS_PER_TURN
    still = [motor for motor in MOTORS if highs[motor] - lows[motor] < SMALL_RANGE]
    if wrapped:
        return (
            lows,
            highs,
            (
                f"{', '.join(sorted(wrapped))} passed the end of the sensor's turn, so the start was not the middle of the range. Again:"
            ),
        )
    if still:
        return lows, highs, f"{', '.join(still)} hardly moved. Again, every joint to both ends:"
    return lows, highs, ""


def _motion(steps: int) -> str:
    return f"{steps * 360 / STEPS_PER_TURN:.0f}°"


def find_joint_limits(arms: dict[str, SOArm], guide: Guide) -> dict[str, tuple[float, float]]:
    """Return the lowest and highest value of each joint, in its unit, to which a person moves open, calibrated arms.

    Raises:
        RobotError: a motor does not reply, or no person can answer.
    """
    found: dict[str, tuple[float, float]] = {}
    for arm in arms.values():
        arm.check_calibration()
        arm.release_torque()

    def rows() -> list[Row]:
        table: list[Row] = []
        for prefix, arm in arms.items():
            for motor, value in arm.positions().items():
                name = f"{prefix}{motor}.pos"
                low, high = found.get(name, (value, value))
                found[name] = min(low, value), max(high, value)
                table.append((name, *(f"{number:.1f}" for number in (found[name][0], value, found[name][1]))))
        return table

    title = "Move the arm wherever it may go. Enter ends it."
    guide.watch(title, ("joint", "lowest", "now", "highest"), rows)
    return found


@dataclass(frozen=True)
class MotorState:
    """What a motor says of itself.

    Attributes:
        name, id: the motor.
        raw: its position in steps.
        value: its position in its unit; None without a calibration.
        unit: the unit.
        limits: its lowest and highest value; None without a calibration.
        load: percent of its torque, with a sign.
        temperature: °C.
        voltage: V.
        faults: the faults in words; empty if it reports none.
    """

    name: str
    id: int
    raw: int
    value: float | None
    unit: JointUnit
    limits: tuple[float, float] | None
    load: float
    temperature: int
    voltage: float
    faults: str

    COLUMNS = ("motor", "id", "raw", "value", "unit", "range", "load", "°C", "V", "faults")

    def row(self) -> Row:
        """Return the state as a row of a table with `COLUMNS`."""
        return (
            self.name,
            str(self.id),
            str(self.raw),
            "-" if self.value is None else f"{self.value:.1f}",
            self.unit.value,
            "-" if self.limits is None else f"{self.limits[0]:.0f} to {self.limits[1]:.0f}",
            f"{self.load:.0f}%",
            str(self.temperature),
            f"{self.voltage:.1f}",
            self.faults or "none",
        )


def motor_states(arm: SOArm, prefix: str = "") -> Iterator[MotorState]:
    """Yield the state of each motor of an open arm."""
    raw = arm.bus.sync_read(registers.PRESENT_POSITION)
    load = arm.bus.sync_read(registers.PRESENT_LOAD)
    temperature = arm.bus.sync_read(registers.PRESENT_TEMPERATURE)
    voltage = arm.bus.sync_read(registers.PRESENT_VOLTAGE)
    for motor, number in MOTORS.items():
        known, unit = arm.calibration.get(motor), arm.units[motor]
        fault = arm.bus.faults.get(motor)
        yield MotorState(
            name=f"{prefix}{motor}",
            id=number,
            raw=raw[motor],
            value=known.to_unit(raw[motor], unit) if known else None,
            unit=unit,
            limits=known.limits(unit) if known else None,
            load=load[motor] / 10,
            temperature=temperature[motor],
            voltage=voltage[motor] / 10,
            faults=fault.words() if fault else "",
        )

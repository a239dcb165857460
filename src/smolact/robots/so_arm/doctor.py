"""`smolact robot doctor`: whether an arm's motors, bus, supply and calibration are well."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from smolact.errors import RobotError
from smolact.robots.feetech import registers
from smolact.robots.so_arm.arm import MOTORS, SOArm
from smolact.robots.so_arm.setup import MotorState, motor_states

HOT_C = 60
SUPPLIES = ((4.5, 8.4), (10.0, 14.0))
"""Volts under which the two kinds of STS3215 run: 5 to 7.4 V, and 12 V."""
SLOW_MS = 8.0
"""A reading slower than this leaves too little of a tick of 30 Hz for cameras and policy."""


@dataclass(frozen=True)
class BusTiming:
    """The duration of readings of all motors in ms, and how many in a thousand were lost and repeated."""

    p50: float
    p99: float
    lost: float
    readings: int


@dataclass(frozen=True)
class ArmReport:
    """What `examine` found.

    Attributes:
        motors: the state of each motor.
        timing: the bus.
        findings: what is wrong, each with what to do about it; empty if all is well.
    """

    motors: tuple[MotorState, ...]
    timing: BusTiming
    findings: tuple[str, ...]


def examine(
    arm: SOArm, prefix: str = "", readings: int = 1000, on_progress: Callable[[int], None] = lambda done: None
) -> ArmReport:
    """Examine an open arm; moves nothing and writes nothing.

    Args:
        arm: the arm.
        prefix: the prefix of its motors' names.
        readings: how many readings of all motors are timed.
        on_progress: called with the number of readings done.

    Raises:
        RobotError: a motor does not reply.
    """
    timing = _time_readings(arm, readings, on_progress)
    motors = tuple(motor_states(arm, prefix))
    return ArmReport(motors, timing, tuple(_findings(arm, motors, timing)))


def _time_readings(arm: SOArm, readings: int, on_progress: Callable[[int], None]) -> BusTiming:
    lost_before = arm.bus.lost_replies
    durations = np.empty(readings)
    failures = 0
    for at in range(readings):
        began = time.perf_counter()
        try:
            arm.bus.sync_read(registers.PRESENT_POSITION)
        except RobotError:
            failures += 1
            if failures > 10:
                raise
        durations[at] = 1000 * (time.perf_counter() - began)
        on_progress(at + 1)
    p50, p99 = np.percentile(durations, (50, 99))
    lost = 1000 * (arm.bus.lost_replies - lost_before) / readings
    return BusTiming(float(p50), float(p99), lost, readings)


def _findings(arm: SOArm, motors: tuple[MotorState, ...], timing: BusTiming) -> list[str]:
    found = []
    for motor in motors:
        if motor.faults:
            found.append(f"{motor.name}: {motor.faults}.")
        if motor.temperature >= HOT_C:
            found.append(
                f"{motor.name} has {motor.temperature} °C; it switches off at about 70. Let it rest, and look for what it pushes against."
            )
        if not any(low <= motor.voltage <= high for low, high in SUPPLIES):
            found.append(
                f"{motor.name} gets {motor.voltage:.1f} V: neither 5 to 7.4 V nor 12 V. Look at the power supply and its plug."
            )
    if timing.lost > 5:
        found.append(
            f"{timing.lost:.0f} of 1000 replies were lost. Look at the three-wire cables, shorten the USB cable, use no hub."
        )
    if timing.p99 > SLOW_MS:
        found.append(
            f"One reading in a hundred takes {timing.p99:.1f} ms. On Linux, lower the adapter's latency timer "
            "(/sys/bus/usb-serial/devices/*/latency_timer to 1), and close what else keeps the machine busy."
        )
    different = arm.different_from_file()
    if not arm.calibration:
        found.append(f"There is no calibration {arm.file}: smolact robot calibrate.")
    elif different:
        found.append(
            f"The motors hold another calibration than {arm.file}: {', '.join(different)}. Calibrate again, or give the --robot.id that "
            "belongs to this arm."
        )
    for name in MOTORS if arm.calibration and not different else ():
        state = next(motor for motor in motors if motor.name.endswith(name))
        known = arm.calibration[name]
        if not known.range_min - 60 <= state.raw <= known.range_max + 60:
            found.append(
                f"{state.name} stands at {state.raw}, outside of its calibrated range {known.range_min} to {known.range_max}: its horn may "
                "have slipped. Calibrate again."
            )
    return found

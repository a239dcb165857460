"""What stands behind the drivers: errors, a bus, a camera. Tests reach in through their attributes."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np


class DeviceNotConnectedError(ConnectionError):
    pass


class MotorNormMode(str, Enum):
    RANGE_0_100 = "range_0_100"
    RANGE_M100_100 = "range_m100_100"
    DEGREES = "degrees"


@dataclass
class Motor:
    id: int
    model: str
    norm_mode: MotorNormMode


@dataclass
class MotorCalibration:
    id: int
    drive_mode: int
    homing_offset: int
    range_min: int
    range_max: int


class Bus:
    model_resolution_table = {"sts3215": 4096}  # noqa: RUF012

    def __init__(self, port: str, motors: dict[str, Motor], calibration: dict[str, MotorCalibration]) -> None:
        self.port, self.motors, self.calibration = port, motors, calibration
        self.positions = dict.fromkeys(motors, 0.0)
        self.written: list[dict[str, float]] = []
        self.is_connected = self.torque = self.is_broken = False

    def connect(self) -> None:
        if "missing" in self.port:
            raise ConnectionError(f"\nCould not connect on port '{self.port}'.\n")
        self.is_connected = self.torque = True

    def disconnect(self, disable_torque: bool = True) -> None:
        if disable_torque:
            if self.is_broken:
                raise ConnectionError("There is no status packet!")
            self.torque = False
        self.is_connected = False

    def read(self) -> dict[str, float]:
        if self.is_broken:
            raise ConnectionError("There is no status packet!")
        return dict(self.positions)

    def write(self, goals: dict[str, float]) -> None:
        self.written.append(goals)
        self.positions |= goals


class Camera:
    def __init__(self, height: int, width: int, source: Any) -> None:
        self.height, self.width, self.source = height, width, source
        self.is_connected, self.latest_timestamp = False, None

    def connect(self) -> None:
        if self.source == "missing":
            raise ConnectionError(f"Failed to open OpenCVCamera({self.source}).")
        self.is_connected = True

    def read_latest(self) -> np.ndarray:
        if self.source == "frozen":
            raise TimeoutError("latest frame is too old: 812.0 ms (max allowed: 500 ms).")
        return np.full((self.height, self.width, 3), 7, np.uint8)

    def async_read(self, timeout_ms: float) -> np.ndarray:
        return self.read_latest()

    def disconnect(self) -> None:
        self.is_connected = False

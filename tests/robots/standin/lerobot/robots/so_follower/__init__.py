from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import draccus

from lerobot.cameras import CameraConfig
from lerobot.cameras.opencv import OpenCVCamera
from lerobot.devices import Bus, DeviceNotConnectedError, Motor, MotorCalibration, MotorNormMode
from lerobot.robots import RobotConfig


@RobotConfig.register_subclass("koch_follower")
@RobotConfig.register_subclass("so101_follower")
@RobotConfig.register_subclass("so100_follower")
@dataclass(kw_only=True)
class SOFollowerRobotConfig(RobotConfig):
    port: str
    max_relative_target: float | dict[str, float] | None = None
    cameras: dict[str, CameraConfig] = field(default_factory=dict)
    use_degrees: bool = True


MODELS = {"shoulder_pan": MotorNormMode.DEGREES, "gripper": MotorNormMode.RANGE_0_100}


def read_calibration(path: Path) -> dict[str, MotorCalibration]:
    if not path.is_file():
        return {}
    with path.open() as file, draccus.config_type("json"):
        return draccus.load(dict[str, MotorCalibration], file)


class SOFollower:
    name = "so_follower"

    def __init__(self, config: SOFollowerRobotConfig) -> None:
        self.config, self.id = config, config.id
        self.calibration_fpath = (config.calibration_dir or Path()) / f"{self.id}.json"
        motors = {name: Motor(at, "sts3215", mode) for at, (name, mode) in enumerate(MODELS.items(), 1)}
        self.bus = Bus(config.port, motors, read_calibration(self.calibration_fpath))
        self.cameras = {name: OpenCVCamera(camera) for name, camera in config.cameras.items()}

    @property
    def action_features(self) -> dict[str, Any]:
        return {f"{motor}.pos": float for motor in self.bus.motors}

    @property
    def observation_features(self) -> dict[str, Any]:
        features: dict[str, Any] = dict(self.action_features)
        for name, camera in self.cameras.items():
            features[name] = (camera.height, camera.width, 3)
            if self.config.cameras[name].use_depth:
                features[f"{name}_depth"] = (camera.height, camera.width, 1)
        return features

    @property
    def is_connected(self) -> bool:
        return self.bus.is_connected and all(camera.is_connected for camera in self.cameras.values())

    @property
    def is_calibrated(self) -> bool:
        return bool(self.bus.calibration)

    def _must_be_connected(self) -> None:
        if not self.is_connected:
            raise DeviceNotConnectedError("SOFollower is not connected. Run `.connect()` first.")

    def connect(self, calibrate: bool = True) -> None:
        assert not calibrate, "it would ask"
        self.bus.connect()
        for camera in self.cameras.values():
            camera.connect()

    def calibrate(self) -> None:
        input("Move it to the middle of its range and press ENTER")
        self.calibration_fpath.parent.mkdir(parents=True, exist_ok=True)
        with self.calibration_fpath.open("w") as file, draccus.config_type("json"):
            draccus.dump({name: MotorCalibration(1, 0, 0, 1024, 3072) for name in MODELS}, file)

    def get_observation(self) -> dict[str, Any]:
        self._must_be_connected()
        found: dict[str, Any] = {f"{motor}.pos": value for motor, value in self.bus.read().items()}
        return found | {name: camera.read_latest() for name, camera in self.cameras.items()}

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        self._must_be_connected()
        goals = {name.removesuffix(".pos"): value for name, value in action.items()}
        if isinstance(most := self.config.max_relative_target, float):
            now = self.bus.read()
            goals = {
                name: min(max(value, now[name] - most), now[name] + most) for name, value in goals.items()
            }
        self.bus.write(goals)
        return {f"{name}.pos": value for name, value in goals.items()}

    def disconnect(self) -> None:
        self._must_be_connected()
        self.bus.disconnect()
        for camera in self.cameras.values():
            camera.disconnect()

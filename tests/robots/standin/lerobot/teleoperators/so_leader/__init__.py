from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lerobot.devices import Bus, Motor
from lerobot.robots.so_follower import MODELS, read_calibration
from lerobot.teleoperators import TeleoperatorConfig


@TeleoperatorConfig.register_subclass("koch_leader")
@TeleoperatorConfig.register_subclass("so101_leader")
@dataclass(kw_only=True)
class SOLeaderTeleopConfig(TeleoperatorConfig):
    port: str


class SOLeader:
    name = "so_leader"

    def __init__(self, config: SOLeaderTeleopConfig) -> None:
        self.config, self.id = config, config.id
        self.calibration_fpath = (config.calibration_dir or Path()) / f"{self.id}.json"
        # A leader names its joints in an order of its own.
        motors = {
            name: Motor(at, "sts3215", mode) for at, (name, mode) in enumerate(reversed(MODELS.items()), 1)
        }
        self.bus = Bus(config.port, motors, read_calibration(self.calibration_fpath))

    @property
    def action_features(self) -> dict[str, Any]:
        return {f"{motor}.pos": float for motor in self.bus.motors}

    @property
    def is_connected(self) -> bool:
        return self.bus.is_connected

    @property
    def is_calibrated(self) -> bool:
        return bool(self.bus.calibration)

    def connect(self, calibrate: bool = True) -> None:
        assert not calibrate, "it would ask"
        self.bus.connect()

    def get_action(self) -> dict[str, float]:
        return {f"{motor}.pos": value for motor, value in self.bus.read().items()}

    def disconnect(self) -> None:
        self.bus.disconnect()

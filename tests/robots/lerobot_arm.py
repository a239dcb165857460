"""Run by a Python that has LeRobot: its real robots over motors and cameras that exist in memory alone.

The bus is LeRobot's own, with its registers, normalization and calibration; only the bytes on the wire are missing.
Prints one JSON object: what the adapter says of it.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from lerobot.cameras.opencv import camera_opencv
from lerobot.motors.feetech import FeetechMotorsBus
from lerobot.robots.so_follower import so_follower
from lerobot.teleoperators.so_leader import so_leader
from lerobot.utils.feature_utils import build_dataset_frame, hw_to_dataset_features

from smolact.errors import SmolactError
from smolact.robots.factory import make_robot, make_teleoperator
from smolact.robots.lerobot_drivers import ROBOT, known_types
from smolact.runtime.loop import TeleoperatorSource
from smolact.types import STATE

CAMERA = {"type": "opencv", "index_or_path": 0, "width": 64, "height": 48, "fps": 30}


class Port:
    """A serial port that opens."""

    is_open = is_using = False

    def openPort(self) -> bool:  # noqa: N802
        self.is_open = True
        return True

    def closePort(self) -> None:  # noqa: N802
        self.is_open = False

    def clearPort(self) -> None:  # noqa: N802
        pass

    def setPacketTimeoutMillis(self, milliseconds: int) -> None:  # noqa: N802
        pass


class MemoryBus(FeetechMotorsBus):
    """LeRobot's bus; a register is an entry of a dict."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.port_handler, self.registers, self.is_broken = Port(), {}, False
        for motor in self.motors.values():
            self._set("Present_Position", motor.id, 2048)

    def _set(self, name: str, motor: int, value: int) -> None:
        self.registers[motor, self.model_ctrl_table["sts3215"][name][0]] = value

    def turn(self, motor: str, steps: int) -> None:
        self._set("Present_Position", self.motors[motor].id, steps)

    def goals(self) -> list[int | None]:
        address = self.model_ctrl_table["sts3215"]["Goal_Position"][0]
        return [self.registers.get((motor.id, address)) for motor in self.motors.values()]

    def torque(self) -> list[int | None]:
        address = self.model_ctrl_table["sts3215"]["Torque_Enable"][0]
        return [self.registers.get((motor.id, address)) for motor in self.motors.values()]

    def _handshake(self) -> None:
        pass

    def _answer(self) -> None:
        if self.is_broken:
            raise ConnectionError("Failed to sync read 'Present_Position'. There is no status packet!")

    def _read(self, address: int, length: int, motor_id: int, **_: Any) -> tuple[int, int, int]:
        self._answer()
        return self.registers.get((motor_id, address), 0), 0, 0

    def _write(self, addr: int, length: int, motor_id: int, value: int, **_: Any) -> tuple[int, int]:
        self._answer()
        self.registers[motor_id, addr] = value
        return 0, 0

    def _sync_read(
        self, addr: int, length: int, motor_ids: list[int], **_: Any
    ) -> tuple[dict[int, int], int]:
        self._answer()
        return {motor: self.registers.get((motor, addr), 0) for motor in motor_ids}, 0

    def _sync_write(self, addr: int, length: int, ids_values: dict[int, int], **_: Any) -> int:
        self._answer()
        self.registers |= {(motor, addr): value for motor, value in ids_values.items()}
        return 0


class Film:
    """What OpenCV gives of a camera that shows red."""

    def __init__(self, source: Any, backend: int = 0) -> None:
        self.source, self.properties = source, {cv2.CAP_PROP_FPS: 30.0}

    def isOpened(self) -> bool:  # noqa: N802
        return self.source == 0

    def set(self, name: int, value: float) -> bool:
        self.properties[name] = value
        return True

    def get(self, name: int) -> float:
        return self.properties.get(name, 0.0)

    def read(self) -> tuple[bool, np.ndarray]:
        time.sleep(1 / 30)
        picture = np.zeros((48, 64, 3), np.uint8)
        picture[..., 2] = 255
        return True, picture

    def release(self) -> None:
        self.source = None


def error_of(act: Callable[[], Any]) -> str:
    try:
        act()
    except SmolactError as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def features_agree(folder: Path) -> dict[str, Any]:
    """Every type that can be made without its hardware: our names and order beside those that lerobot-record stores."""
    agree: dict[str, Any] = {}
    for name in known_types(ROBOT):
        arms = (
            {f"{side}_arm_config": {"port": "x"} for side in ("left", "right")}
            if name.startswith("bi_")
            else {}
        )
        port = {"port": "x"} if name.endswith(("follower", "arm", "hand")) and not arms else {}
        try:
            robot = make_robot(name, calibration_dir=str(folder), **arms, **port)
        except SmolactError as error:
            agree[name] = type(error).__name__
            continue
        seen = hw_to_dataset_features(robot.driver.observation_features, "observation")
        taken = hw_to_dataset_features(robot.driver.action_features, "action")
        vectors = {key: tuple(value["names"]) for key, value in seen.items() if value["dtype"] == "float32"}
        cameras = {key: tuple(value["shape"][:2]) for key, value in seen.items() if value["dtype"] == "video"}
        agree[name] = (
            robot.features.action == tuple(taken["action"]["names"])
            and robot.features.vectors == vectors
            and robot.features.cameras == cameras
            and robot.name == robot.driver.name
        )
    return agree


def main(folder: Path) -> dict[str, Any]:
    logging.disable(logging.INFO)
    so_follower.FeetechMotorsBus = so_leader.FeetechMotorsBus = MemoryBus
    found: dict[str, Any] = {"features": features_agree(folder)}
    camera_opencv.cv2.VideoCapture = Film
    settings = {"port": "usb0", "id": "black", "calibration_dir": str(folder)}

    robot = make_robot("so101_follower", **settings, cameras={"front": CAMERA})
    found["uncalibrated"] = error_of(robot.connect)
    found["closed after it"] = (
        not robot.driver.bus.is_connected and not robot.driver.cameras["front"].is_connected
    )
    one = {"drive_mode": 0, "homing_offset": 0, "range_min": 1024, "range_max": 3072}
    calibration = {name: {"id": motor.id, **one} for name, motor in robot.driver.bus.motors.items()}
    (folder / "black.json").write_text(json.dumps(calibration))

    robot = make_robot("so101_follower", **settings, cameras={"front": CAMERA})
    for motor in robot.driver.bus.motors.values():
        robot.driver.bus._set("Min_Position_Limit", motor.id, 1024)
        robot.driver.bus._set("Max_Position_Limit", motor.id, 3072)
    robot.connect()
    found["limits"] = [robot.gate.limits.low.tolist(), robot.gate.limits.high.tolist()]
    robot.driver.bus.turn("elbow_flex", 2048 + 512)
    ours, theirs = robot.get_observation(), robot.driver.get_observation()
    seen = hw_to_dataset_features(robot.driver.observation_features, "observation")
    frame = build_dataset_frame(seen, theirs, "observation")
    found["observation as stored by lerobot-record"] = list(ours) == list(frame) and all(
        ours[key].dtype == frame[key].dtype and np.array_equal(ours[key], frame[key]) for key in frame
    )
    found["elbow"] = float(ours[STATE][2])
    found["picture"] = ours["observation.images.front"][0, 0].tolist()
    found["camera is young"] = 0 <= robot.camera_ages()["observation.images.front"] < 5.0
    found["refused"] = [
        error_of(lambda action=action: robot.send_action(np.array(action, float)))
        for action in ([np.nan] * 6, [0, 0, 45, 0, 0, 900], [0, 0, 90, 0, 0, 0])
    ]
    found["goals before"] = robot.driver.bus.goals()
    robot.send_action(np.array([0, 0, 22.5, 0, 0, 100]))
    found["goals"] = robot.driver.bus.goals()

    leader = make_teleoperator("so101_leader", **settings)
    for motor in leader.driver.bus.motors.values():
        leader.driver.bus._set("Min_Position_Limit", motor.id, 1024)
        leader.driver.bus._set("Max_Position_Limit", motor.id, 3072)
    leader.connect(robot)
    leader.driver.bus.turn("shoulder_pan", 3072)
    driver = TeleoperatorSource(leader, robot.gate)
    path = [robot.send_action(driver.get_action(ours)) for _ in range(4)]
    found["followed"] = [round(float(action[0]), 2) for action in path]
    leader.disconnect()

    robot.driver.bus.is_broken = True
    found["cable"] = error_of(robot.get_observation)
    robot.disconnect()
    found["closed after the cable"] = not robot.driver.bus.is_connected
    found["camera"] = error_of(
        make_robot("so101_follower", **settings, cameras={"front": CAMERA | {"index_or_path": 9}}).connect
    )
    return found


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))

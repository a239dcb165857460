"""`smolact robot info`: the types that there are, what is plugged in; with --robot.type, what that robot sees and takes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from smolact.cli.command import command
from smolact.cli.devices import RobotSection

if TYPE_CHECKING:
    from smolact.robots.base import Robot

USAGE = "smolact robot info [--robot.type=so101_follower --robot.port=PORT --robot.id=NAME]"


@dataclass
class InfoConfig:
    """Settings of `smolact robot info`. Nothing is connected."""

    robot: RobotSection = field(default_factory=RobotSection)


@command(InfoConfig, USAGE)
def run(config: InfoConfig) -> None:
    """Print the known types and ports, or one robot's features and limits."""
    lines = _overview() if config.robot.type is None else _describe(config.robot.make())
    sys.stdout.write("\n".join(lines) + "\n")


def _overview() -> Iterator[str]:
    from smolact.registry import ROBOTS, TELEOPERATORS
    from smolact.robots.factory import robot_types, teleoperator_types
    from smolact.robots.lerobot_drivers import CAMERA, NEEDS, is_installed, known_types, version
    from smolact.robots.ports import serial_ports, video_devices

    yield f"LeRobot        {version() or ('there' if is_installed() else 'not installed. ' + NEEDS)}"
    yield f"robots         {', '.join(robot_types(ROBOTS)) or 'none'}"
    yield f"teleoperators  {', '.join(teleoperator_types(TELEOPERATORS)) or 'none'}"
    cameras = [kind for kind in known_types(CAMERA) if kind != "opencv"] if is_installed() else []
    yield f"cameras        {', '.join(['opencv', *cameras])}"
    yield f"serial ports   {', '.join(serial_ports()) or 'none'}"
    yield f"video devices  {', '.join(video_devices()) or 'none'}"


def _describe(robot: Robot) -> Iterator[str]:
    from smolact.robots.lerobot import LeRobotRobot
    from smolact.robots.lerobot_hardware import calibration_file
    from smolact.robots.so_arm.follower import SOFollower
    from smolact.types import ACTION

    features = robot.features
    yield f"{robot.name}"
    for key, names in features.vectors.items():
        yield f"  {key} ({len(names)}): {', '.join(names)}"
    for key, (height, width) in features.cameras.items():
        yield f"  {key}: {width}×{height}"
    yield f"  {ACTION} ({len(features.action)}): {', '.join(features.action)}"
    if isinstance(robot, LeRobotRobot):
        yield f"  calibration: {calibration_file(robot.driver)}"
    if isinstance(robot, SOFollower):
        for arm in robot.arms.values():
            yield f"  calibration: {arm.file}{'' if arm.calibration else ', which is not there yet'}"
    limits = robot.gate.limits
    yield "  what the gate lets pass: lowest, highest, largest step of a tick (inf: anything)"
    for name, low, high, step in zip(limits.names, limits.low, limits.high, limits.step, strict=True):
        yield f"    {name}: {low:g}, {high:g}, {step:g}"

"""How well the control loop holds 30 Hz on a simulated SO-101 with two cameras.

    python benchmarks/so101.py [--seconds=60] [--cameras=2] [--output=benchmarks/results/so101.json]

The motors answer on a pseudo-terminal from a process of their own; each camera is an MJPEG film of 480×640 at 30 pictures a second, decoded
as a USB camera's pictures are. Each tick reads the arm and the pictures and sends a goal.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np

from smolact.machine import cores
from smolact.registry import ROBOTS
from smolact.robots.base import Observation
from smolact.robots.factory import make_robot
from smolact.robots.so_arm import doctor
from smolact.robots.so_arm.arm import MOTORS
from smolact.robots.so_arm.calibration import MotorCalibration, write_calibration
from smolact.robots.so_arm.follower import SOFollower
from smolact.runtime.loop import ControlLoop
from smolact.types import STATE

FPS, HEIGHT, WIDTH = 30, 480, 640
MOTORS_ON_A_LINE = Path(__file__).parent.parent / "tests" / "robots" / "feetech_bus.py"


class Swaying:
    """Each joint sways by 10° around its middle."""

    drives_resets = False
    tick = 0

    def begin(self, task: str) -> None:
        """Nothing depends on the instruction."""

    def get_action(self, observation: Observation) -> np.ndarray:
        """The next goal, (6,)."""
        self.tick += 1
        goal = np.full(len(observation[STATE]), 10 * np.sin(self.tick / FPS), np.float32)
        goal[-1] += 50  # the gripper is 0 to 100
        return goal


def film(path: Path) -> None:
    """Write two seconds of noisy MJPEG."""
    random = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuvj422p"
        coarse = np.kron(random.integers(0, 256, (HEIGHT // 16, WIDTH // 16, 3)), np.ones((16, 16, 1)))
        for _ in range(2 * FPS):
            noisy = np.clip(coarse + random.normal(0, 3, coarse.shape), 0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(noisy, format="rgb24")))
        container.mux(stream.encode())


def measure(seconds: float, n_cameras: int, port: str, folder: Path) -> dict[str, object]:
    """Return the rate, the jitter, and the times of the bus."""
    film(folder / "film.avi")
    source = f"lavfi:movie=filename={folder}/film.avi:loop=0,setpts=N/({FPS}*TB),realtime"
    camera = {"type": "opencv", "index_or_path": source, "width": WIDTH, "height": HEIGHT, "fps": FPS}
    robot = make_robot(
        "so101_follower",
        ROBOTS,
        port=port,
        id="simulated",
        calibration_dir=folder,
        cameras={f"camera{number}": camera for number in range(n_cameras)},
    )
    assert isinstance(robot, SOFollower)
    robot.connect()
    arm = robot.arms[""]
    try:
        bus = doctor.examine(arm, readings=1000).timing
        requests, lost = arm.bus.requests, arm.bus.lost_replies
        loop = ControlLoop(robot, FPS)
        loop.run(Swaying(), lambda: loop.ticks + loop.rate_limiter.missed >= seconds * FPS)
        timing = loop.rate_limiter.timing()
        return {
            "ticks a second": round(timing.rate or 0, 3),
            "jitter p50, ms": round(timing.jitter_p50_ms, 2),
            "jitter p99, ms": round(timing.jitter_p99_ms, 2),
            "late ticks": timing.late,
            "missed ticks": timing.missed,
            "ticks": loop.ticks,
            "repeated requests": arm.bus.lost_replies - lost,
            "requests": arm.bus.requests - requests,
            "reading of six motors p50, ms": round(bus.p50, 2),
            "reading of six motors p99, ms": round(bus.p99, 2),
        }
    finally:
        robot.disconnect()


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, and write what was found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--cameras", type=int, default=2)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(argv)
    motors = subprocess.Popen(
        [sys.executable, str(MOTORS_ON_A_LINE), "6"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert motors.stdin is not None and motors.stdout is not None
    try:
        port = motors.stdout.readline().strip()
        with tempfile.TemporaryDirectory() as name:
            calibration = {motor: MotorCalibration(number, 0, 0, 0, 4095) for motor, number in MOTORS.items()}
            write_calibration(calibration, Path(name) / "simulated.json")
            found = measure(options.seconds, options.cameras, port, Path(name))
    finally:
        motors.stdin.close()
        motors.wait()
    result = {
        "command": f"python benchmarks/so101.py --seconds={options.seconds:g} --cameras={options.cameras}",
        "machine": f"{cores()} cores, {platform.machine()}, Python {platform.python_version()}, PyAV {av.__version__}",
        **found,
    }
    text = json.dumps(result, indent=2)
    sys.stdout.write(text + "\n")
    if options.output is not None:
        options.output.write_text(text + "\n")


if __name__ == "__main__":
    main()

"""Recording two cameras of 480×640 at 30 a second, in real time: what rate holds, what is lost, how long until it is safe.

    python benchmarks/recording.py [--seconds=20] [--lerobot]

The robot is a script whose cameras show a moving, noisy picture (made before the clock starts); everything behind it is the
real recorder. `--lerobot` records the same frames with LeRobot's own writer in the same run; LeRobot must be installed.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from smolact.datasets.writer import DatasetWriter
from smolact.recording.recorder import Recorder, RecordingPlan, dataset_features
from smolact.robots.base import RobotFeatures
from smolact.robots.safety import Gate, make_limits
from smolact.runtime.rate_limiter import RateLimiter

FPS, HEIGHT, WIDTH, PICTURES = 30, 480, 640, 45
CAMERAS = ("observation.images.front", "observation.images.wrist")
JOINTS = tuple(f"joint_{number}.pos" for number in range(6))


def pictures(seed: int) -> list[np.ndarray]:
    """A drifting pattern with a camera's noise: neither trivial to encode nor as hard as pure noise."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (HEIGHT // 16, 2 * WIDTH // 16, 3)).astype(np.float32)
    wide = np.kron(coarse, np.ones((16, 16, 1), np.float32))
    found = []
    for number in range(PICTURES):
        shown = wide[:, 4 * number : 4 * number + WIDTH] + random.normal(0, 3, (HEIGHT, WIDTH, 3))
        found.append(shown.clip(0, 255).astype(np.uint8))
    return found


class Arm:
    """Six joints and two cameras."""

    name = "scripted"

    def __init__(self) -> None:
        self.features = RobotFeatures(
            JOINTS, {"observation.state": JOINTS}, dict.fromkeys(CAMERAS, (HEIGHT, WIDTH))
        )
        self.gate = Gate(make_limits(JOINTS, {}, {}))
        self._pictures = [pictures(seed) for seed in range(len(CAMERAS))]
        self._looks = 0

    def connect(self) -> None:
        """Nothing to connect."""

    def disconnect(self) -> None:
        """Nothing to let go of."""

    def get_observation(self) -> dict[str, np.ndarray]:
        """The next pictures, and where the joints are."""
        self._looks += 1
        shown = {key: self._pictures[n][self._looks % PICTURES] for n, key in enumerate(CAMERAS)}
        return {"observation.state": np.full(6, np.sin(self._looks / 30), np.float32), **shown}

    def send_action(self, action: np.ndarray) -> np.ndarray:
        """It goes where it is told."""
        return action


class Hand:
    """Moves the joints to and fro."""

    drives_resets = False

    def begin(self, task: str) -> None:
        """Nothing to remember."""

    def get_action(self, observation: dict[str, np.ndarray]) -> np.ndarray:
        """A little further."""
        return observation["observation.state"] + 0.01


def with_smolact(folder: Path, codec: str, seconds: float, episodes: int) -> dict[str, Any]:
    """Record with smolact's recorder."""
    arm = Arm()
    writer = DatasetWriter.create(
        folder, fps=FPS, features=dataset_features(arm.features), robot_type="scripted", video_codec=codec
    )
    plan = RecordingPlan(FPS, episodes, episode_time_s=seconds, reset_time_s=0, task="move")
    began = time.perf_counter()
    reports = Recorder(arm, Hand(), writer, plan).run()
    writer.close()
    frames = sum(report.frames for report in reports)
    timings = [report.timing for report in reports if report.timing is not None]
    return {
        "frames a second": round(float(np.mean([timing.rate for timing in timings])), 2),
        "frames": frames,
        "dropped": sum(report.dropped for report in reports),
        "missed ticks": sum(timing.missed for timing in timings),
        "jitter p99, ms": round(max(timing.jitter_p99_ms for timing in timings), 2),
        "ready after, s": [round(report.seconds_to_ready, 2) for report in reports],
        "in all, s": round(time.perf_counter() - began, 1),
        "MB": round(sum(path.stat().st_size for path in folder.rglob("*.mp4")) / 1e6, 2),
    }


def with_lerobot(folder: Path, seconds: float, episodes: int) -> dict[str, Any]:
    """Record the same with LeRobot's writer, as its own command does: image writer threads, video at the end."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    arm, hand = Arm(), Hand()
    features = {
        "observation.state": {"dtype": "float32", "shape": (6,), "names": list(JOINTS)},
        "action": {"dtype": "float32", "shape": (6,), "names": list(JOINTS)},
        **{
            key: {"dtype": "video", "shape": (HEIGHT, WIDTH, 3), "names": ["height", "width", "channels"]}
            for key in CAMERAS
        },
    }
    dataset = LeRobotDataset.create(
        "local/recording", FPS, features=features, root=folder, image_writer_threads=4 * len(CAMERAS)
    )
    rates, ready, frames, jitter, missed = [], [], 0, [], 0
    began = time.perf_counter()
    for _ in range(episodes):
        pace = RateLimiter(FPS)
        start = time.perf_counter()
        while time.perf_counter() - start < seconds:
            pace.tick()
            observation = arm.get_observation()
            dataset.add_frame({**observation, "action": hand.get_action(observation), "task": "move"})
            frames += 1
        timing = pace.timing()
        rates.append(timing.rate or 0.0)
        jitter.append(timing.jitter_p99_ms)
        missed += timing.missed
        ended = time.perf_counter()
        dataset.save_episode()
        ready.append(round(time.perf_counter() - ended, 2))
    if hasattr(dataset, "finalize"):
        dataset.finalize()
    return {
        "frames a second": round(float(np.mean(rates)), 2),
        "frames": frames,
        "missed ticks": missed,
        "jitter p99, ms": round(max(jitter), 2),
        "ready after, s": ready,
        "in all, s": round(time.perf_counter() - began, 1),
    }


def main() -> None:
    """Measure, and write a JSON object to standard output."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--episodes", type=int, default=3)
    parser.add_argument("--lerobot", action="store_true")
    arguments = parser.parse_args()
    found: dict[str, Any] = {
        "machine": platform.processor() or platform.machine(),
        "cameras": f"{len(CAMERAS)} of {HEIGHT}×{WIDTH} at {FPS} a second",
        "episodes": f"{arguments.episodes} of {arguments.seconds:g} s",
    }
    with tempfile.TemporaryDirectory() as scratch:
        for codec in ("libsvtav1", "h264"):
            found[f"smolact, {codec}"] = with_smolact(
                Path(scratch) / codec, codec, arguments.seconds, arguments.episodes
            )
        if arguments.lerobot:
            found["lerobot"] = with_lerobot(Path(scratch) / "lerobot", arguments.seconds, arguments.episodes)
    sys.stdout.write(json.dumps(found, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()

"""The plan of a recording: number and length of the episodes, rate, and instruction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from smolact.datasets.checks import check_task
from smolact.errors import ConfigError


@dataclass(frozen=True)
class RecordingPlan:
    """The settings of a recording.

    Attributes:
        fps: frames a second.
        num_episodes: the number of episodes to add.
        episode_time_s: the longest episode.
        reset_time_s: the longest time for a person to reset the scene.
        task: the instruction; None for that of the robot's scene.
        realtime: hold the rate; False records as fast as possible, for simulations.
        interpolation: commands of a frame; see `ControlLoop`.
        flags: the CLI flags of the numbers, for messages; `--dataset.NAME` by default.

    Raises:
        ConfigError: a number is out of range.
        FeatureError: the task is empty.
    """

    fps: float
    num_episodes: int
    episode_time_s: float = 60.0
    reset_time_s: float = 60.0
    task: str | None = None
    realtime: bool = True
    interpolation: int = 1
    flags: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name, value, minimum in (
            ("fps", self.fps, 0.1),
            ("num_episodes", self.num_episodes, 1),
            ("interpolation", self.interpolation, 1),
            ("episode_time_s", self.episode_time_s, 1 / max(self.fps, 0.1)),
            ("reset_time_s", self.reset_time_s, 0),
        ):
            if not minimum <= value < float("inf"):
                flag = self.flags.get(name, f"dataset.{name}")
                raise ConfigError(f"--{flag}={value}: expected a number, {minimum:g} or more.")
        if self.task is not None:
            check_task(self.task)

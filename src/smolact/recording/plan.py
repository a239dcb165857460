"""What is to be recorded: how many episodes, how long, how fast, of what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from smolact.datasets.checks import check_task
from smolact.errors import ConfigError


@dataclass(frozen=True)
class RecordingPlan:
    """What to record.

    Attributes:
        fps: frames a second.
        num_episodes: how many more.
        episode_time_s: the longest episode.
        reset_time_s: the longest time to set the scene back, where software can't.
        task: the instruction; None for what the robot's scene asks for.
        realtime: hold the rate; False: as fast as it goes, for simulations that nobody watches.
        flags: by which flags the numbers were given, for messages; `--dataset.NAME` where nothing else is said.

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
    flags: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name, value, least in (
            ("fps", self.fps, 0.1),
            ("num_episodes", self.num_episodes, 1),
            ("episode_time_s", self.episode_time_s, 1 / max(self.fps, 0.1)),
            ("reset_time_s", self.reset_time_s, 0),
        ):
            if not least <= value < float("inf"):
                flag = self.flags.get(name, f"dataset.{name}")
                raise ConfigError(f"--{flag}={value}: expected a number, {least:g} or more.")
        if self.task is not None:
            check_task(self.task)

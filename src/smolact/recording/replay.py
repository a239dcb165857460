"""Replay of a recorded episode on a robot."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from smolact.datasets.comparison import differences
from smolact.datasets.metadata import LeRobotDatasetMetadata
from smolact.datasets.rows import DataFile
from smolact.errors import ConfigError, FeatureError
from smolact.recording.recorder import dataset_features
from smolact.robots.base import EpisodicRobot, Robot
from smolact.runtime.loop import ControlLoop, RecordedSource
from smolact.runtime.rate_limiter import Timing
from smolact.types import ACTION


def read_actions(root: Path, episode: int) -> tuple[NDArray[np.float32], float]:
    """Return the actions (T, A) of an episode, and their rate.

    Raises:
        NotFoundError, DatasetError: the dataset is missing or corrupt.
        ConfigError: it has no such episode.
        FeatureError: it has no actions.
    """
    meta = LeRobotDatasetMetadata(root)
    if not 0 <= episode < meta.total_episodes:
        raise ConfigError(
            f"--dataset.episode={episode}: {root} has {meta.total_episodes} episodes, 0 to {meta.total_episodes - 1}."
        )
    if ACTION not in meta.features:
        raise FeatureError(f"{root} has no '{ACTION}' to replay; it has {', '.join(meta.features)}.")
    file = DataFile(meta.root, meta.episodes.data_path[episode], [ACTION, "episode_index", "frame_index"])
    rows = file.complete_rows(episode, int(meta.episodes.length[episode]))
    actions = file.column(ACTION, meta.features[ACTION].shape)[rows]
    return np.asarray(actions, np.float32), meta.fps


def check_fits(root: Path, robot: Robot) -> None:
    """Raise unless the dataset's actions fit the robot.

    Raises:
        FeatureError: their number, names, order or units differ.
    """
    expected = dataset_features(robot.features)[ACTION]
    sides = f"in {root}", f"on the robot '{robot.name}'"
    lines = differences(ACTION, LeRobotDatasetMetadata(root).features[ACTION], expected, sides, dtype=False)
    if lines:
        raise FeatureError(f"{'; '.join(lines)}. Replay it on the robot that it was recorded with.")


def replay(
    robot: Robot,
    actions: NDArray[np.float32],
    fps: float,
    episode: int = 0,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Timing:
    """Send the actions (T, A) at their rate to a connected robot; a simulation begins in the scene of the episode.

    The robot's gate checks all actions before the first is sent.

    Raises:
        UnsafeActionError: the gate refuses an action; nothing was sent.
        RobotError: the robot fails, or has no gate.
    """
    loop = ControlLoop(robot, fps, clock=clock, sleep=sleep)
    if isinstance(robot, EpisodicRobot):
        robot.reset(episode)
    robot.gate.check_chunk(actions)
    source = RecordedSource(actions)
    loop.run(source, lambda: source.is_over, observes=False)
    return loop.rate_limiter.timing()

"""Datasets of a scripted expert's demonstrations."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from smolact.datasets.format import UNITS
from smolact.datasets.writer import DatasetWriter
from smolact.envs.demonstrations import Demonstration
from smolact.errors import ConfigError
from smolact.types import ACTION, STATE, RobotNames, is_image_key


def record_demonstrations(
    episodes: Iterable[Demonstration],
    root: str | Path,
    *,
    fps: float,
    use_videos: bool = True,
    robot_type: str | None = None,
    robot_names: RobotNames | None = None,
    on_episode: Callable[[Demonstration], None] | None = None,
) -> int:
    """Write episodes to a new LeRobotDataset v3.0 at `root`, and return its number of frames.

    Args:
        episodes: such as from `smolact.envs.demonstrations.demonstrations(…)`; all with the same keys and shapes.
        root: a missing or empty folder.
        fps: steps a second.
        use_videos: cameras as video (small), or as images in the tables (fast random access, for small pictures).
        robot_type: the `robot_type` of `info.json`.
        robot_names: the simulated robot, whose type replaces `robot_type`, and whose names and units state and action get.
        on_episode: called after each episode, for a progress bar.

    Raises:
        ConfigError: there is no episode, or the folder is not empty.
        WriteError: the disk is full or refused; the episodes that were published before are intact.
    """
    named: dict[str, object] = {}
    if robot_names is not None:
        robot_type = robot_names.robot_type
        named = {"names": list(robot_names.names), "info": {UNITS: list(robot_names.units)}}
    writer: DatasetWriter | None = None
    frames = 0
    try:
        for episode in episodes:
            if writer is None:
                features = {
                    key: {
                        "dtype": _dtype(key, values, "video" if use_videos else "image"),
                        "shape": values.shape[1:],
                        "names": ["height", "width", "channels"] if is_image_key(key) else None,
                        **(named if key in (STATE, ACTION) else {}),
                    }
                    for key, values in episode.frames.items()
                }
                writer = DatasetWriter.create(
                    root, fps=fps, features=features, robot_type=robot_type, episodes_per_file=200
                )
            for index in range(len(episode)):
                frame: dict[str, np.ndarray] = {key: values[index] for key, values in episode.frames.items()}
                writer.add_frame(frame, task=episode.task)
            writer.save_episode()
            frames += len(episode)
            if on_episode is not None:
                on_episode(episode)
    finally:
        if writer is not None:
            writer.close()
    if writer is None:
        raise ConfigError("There is no episode to write.")
    return frames


def _dtype(key: str, values: np.ndarray, image_dtype: str) -> str:
    if is_image_key(key):
        return image_dtype
    return "bool" if values.dtype == np.bool_ else "float32"

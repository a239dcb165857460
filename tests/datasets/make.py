"""Small datasets for the tests, the same every time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smolact.datasets.writer import DatasetWriter

TASKS = ("Push the red block.", "Put it on the plate.")
FPS = 10


def features(dtype: str = "video", cameras: tuple[str, ...] = ("observation.images.top",)) -> dict[str, Any]:
    return {
        **{name: {"dtype": dtype, "shape": (32, 48, 3)} for name in cameras},
        "observation.state": {"dtype": "float32", "shape": (4,), "names": ["a", "b", "c", "d"]},
        "action": {"dtype": "float32", "shape": (2,)},
        "next.done": {"dtype": "bool", "shape": (1,)},
    }


def image(episode: int, number: int, camera: int = 0) -> NDArray[np.uint8]:
    """Each frame a brightness of its own, so that no two can be mixed up; with an edge in it."""
    picture = np.empty((32, 48, 3), dtype=np.uint8)
    picture[:] = (20 + 10 * number, 30 + 40 * (episode % 6), 60 + 90 * camera)
    picture[:8, :8] = 255
    return picture


def frame(episode: int, number: int, cameras: tuple[str, ...], length: int) -> dict[str, Any]:
    rng = np.random.default_rng([episode, number])
    return {
        **{name: image(episode, number, place) for place, name in enumerate(cameras)},
        "observation.state": rng.standard_normal(4).astype(np.float32),
        "action": rng.standard_normal(2).astype(np.float32),
        "next.done": number == length - 1,
    }


def record(writer: DatasetWriter, episode: int, length: int) -> None:
    cameras = tuple(name for name, feature in writer.features.items() if feature.is_image)
    for number in range(length):
        writer.add_frame(frame(episode, number, cameras, length), task=TASKS[episode % 2])
    writer.save_episode()


def write(
    root: Path,
    lengths: tuple[int, ...] = (7, 4, 5),
    dtype: str = "video",
    cameras: tuple[str, ...] = ("observation.images.top",),
    **options: Any,
) -> Path:
    """A dataset with episodes of these lengths. See `frame` for what is in it."""
    with DatasetWriter.create(root, fps=FPS, features=features(dtype, cameras), **options) as writer:
        for episode, length in enumerate(lengths):
            record(writer, episode, length)
    return root

"""The buffer of the episode being recorded: its frames, and their conversion to columns and a metadata row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from smolact.datasets import format as layout
from smolact.datasets.committer import as_vectors
from smolact.datasets.format import Feature
from smolact.datasets.stats import ImageStatistics, vector_statistics


class EpisodePosition(NamedTuple):
    """An episode's position in its dataset: its number, its first frame's index, and that frame's index in the video file."""

    number: int
    first: int
    first_video_frame: int


@dataclass
class EpisodeBuffer:
    """The frames since the last save.

    Attributes:
        values: feature to its values per frame: PNG bytes for an image camera; frames for a video camera, or none if they
            were encoded on arrival.
        statistics: of each camera.
        tasks: per frame.
    """

    values: dict[str, list[Any]]
    statistics: dict[str, ImageStatistics]
    tasks: list[str] = field(default_factory=list)

    @classmethod
    def begin(cls, features: Mapping[str, Feature]) -> EpisodeBuffer:
        """Create an empty episode with these features."""
        cameras = [name for name, feature in features.items() if feature.is_image]
        return cls({name: [] for name in features}, {name: ImageStatistics() for name in cameras})

    def __len__(self) -> int:
        return len(self.tasks)

    def columns(
        self, features: Mapping[str, Feature], fps: float, start: EpisodePosition, tasks: Mapping[str, int]
    ) -> dict[str, Any]:
        """Column name to array, or to a list of PNG bytes or texts; `tasks` maps each task to its index."""
        steps = np.arange(len(self), dtype=np.int64)
        columns: dict[str, Any] = {
            "timestamp": (steps / fps).astype(np.float32),
            "frame_index": steps,
            "episode_index": np.full(len(self), start.number, dtype=np.int64),
            "index": steps + start.first,
            "task_index": np.array([tasks[task] for task in self.tasks], dtype=np.int64),
        }
        for name, values in self.values.items():
            dtype = features[name].dtype
            if dtype != "video":
                columns[name] = values if dtype in ("image", "string") else np.stack(values)
        return columns

    def row(
        self, features: Mapping[str, Feature], fps: float, start: EpisodePosition, columns: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The episode's row of `meta/episodes`, without file indices."""
        row: dict[str, Any] = {
            "episode_index": start.number,
            "tasks": list(dict.fromkeys(self.tasks)),
            "length": len(self),
            "dataset_from_index": start.first,
            "dataset_to_index": start.first + len(self),
        }
        for name, feature in features.items():
            if feature.dtype == "video":
                row[f"videos/{name}/from_timestamp"] = start.first_video_frame / fps
                row[f"videos/{name}/to_timestamp"] = (start.first_video_frame + len(self)) / fps
            if feature.is_image or feature.is_numeric:
                images = self.statistics.get(name)
                stats = images.result() if images else vector_statistics(as_vectors(columns, name, feature))
                row |= {f"stats/{name}/{key}": stats[key].tolist() for key in layout.STATISTICS}
        return row

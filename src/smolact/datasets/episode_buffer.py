"""The episode that is being recorded: its frames, and the columns and the row of metadata that become of them."""

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
    """Where an episode comes in its dataset: its number, that of its first frame, and that frame's in its video file."""

    number: int
    first: int
    first_of_video: int


@dataclass
class EpisodeBuffer:
    """The frames since the last save.

    Attributes:
        values: of each feature by frame; a camera stored as images has PNG bytes, one stored as video in a group the
            frames, and none if its frames were encoded as they came.
        statistics: of each camera.
        tasks: by frame.
    """

    values: dict[str, list[Any]]
    statistics: dict[str, ImageStatistics]
    tasks: list[str] = field(default_factory=list)

    @classmethod
    def begin(cls, features: Mapping[str, Feature]) -> EpisodeBuffer:
        """An episode of these features, without frames yet."""
        cameras = [name for name, feature in features.items() if feature.is_image]
        return cls({name: [] for name in features}, {name: ImageStatistics() for name in cameras})

    def __len__(self) -> int:
        return len(self.tasks)

    def columns(
        self, features: Mapping[str, Feature], fps: float, place: EpisodePosition, tasks: Mapping[str, int]
    ) -> dict[str, Any]:
        """Column name to array, or to a list of PNG bytes or texts; `tasks` has each task's number."""
        steps = np.arange(len(self), dtype=np.int64)
        columns: dict[str, Any] = {
            "timestamp": (steps / fps).astype(np.float32),
            "frame_index": steps,
            "episode_index": np.full(len(self), place.number, dtype=np.int64),
            "index": steps + place.first,
            "task_index": np.array([tasks[task] for task in self.tasks], dtype=np.int64),
        }
        for name, values in self.values.items():
            dtype = features[name].dtype
            if dtype != "video":
                columns[name] = values if dtype in ("image", "string") else np.stack(values)
        return columns

    def row(
        self, features: Mapping[str, Feature], fps: float, place: EpisodePosition, columns: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Its row of `meta/episodes`, without the places of its files."""
        row: dict[str, Any] = {
            "episode_index": place.number,
            "tasks": list(dict.fromkeys(self.tasks)),
            "length": len(self),
            "dataset_from_index": place.first,
            "dataset_to_index": place.first + len(self),
        }
        for name, feature in features.items():
            if feature.dtype == "video":
                row[f"videos/{name}/from_timestamp"] = place.first_of_video / fps
                row[f"videos/{name}/to_timestamp"] = (place.first_of_video + len(self)) / fps
            if feature.is_image or feature.is_numeric:
                images = self.statistics.get(name)
                found = images.result() if images else vector_statistics(as_vectors(columns, name, feature))
                row |= {f"stats/{name}/{one}": found[one].tolist() for one in layout.STATISTICS}
        return row

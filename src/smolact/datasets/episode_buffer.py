"""The buffer of the episode being recorded: its frames, and their conversion to columns and a metadata row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from smolact.datasets import format as layout
from smolact.datasets.format import Feature
from smolact.datasets.stats import ImageStatistics, vector_statistics


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

    def finish(
        self,
        features: Mapping[str, Feature],
        fps: float,
        tasks: Mapping[str, int],
        *,
        number: int,
        first: int,
        first_video_frame: int,
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The episode's columns, and its row of `meta/episodes` without file indices.

        Args:
            tasks: task to its index.
            first: the index of its first frame in the dataset.
            first_video_frame: the index of that frame in the video file.

        Returns:
            column name to array, or to a list of PNG bytes or texts; and the row.
        """
        steps, length = np.arange(len(self), dtype=np.int64), len(self)
        columns: dict[str, Any] = {
            "timestamp": (steps / fps).astype(np.float32),
            "frame_index": steps,
            "episode_index": np.full(length, number, dtype=np.int64),
            "index": steps + first,
            "task_index": np.array([tasks[task] for task in self.tasks], dtype=np.int64),
        }
        row: dict[str, Any] = {
            "episode_index": number,
            "tasks": list(dict.fromkeys(self.tasks)),
            "length": length,
            "dataset_from_index": first,
            "dataset_to_index": first + length,
        }
        for name, feature in features.items():
            values = self.values.get(name)
            if feature.dtype == "video":
                row[f"videos/{name}/from_timestamp"] = first_video_frame / fps
                row[f"videos/{name}/to_timestamp"] = (first_video_frame + length) / fps
            elif values is not None:
                columns[name] = values if feature.dtype in ("image", "string") else np.stack(values)
            if feature.is_image or feature.is_numeric:
                images = self.statistics.get(name)
                stats = (
                    images.result()
                    if images
                    else vector_statistics(columns[name].reshape(-1, *feature.shape))
                )
                row |= {f"stats/{name}/{key}": stats[key].tolist() for key in layout.STATISTICS}
        return columns, row

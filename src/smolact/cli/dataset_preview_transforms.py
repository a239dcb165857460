"""`smolact dataset preview-transforms`: one picture of what training's random changes do to a dataset's cameras.

It takes the flags of `smolact train`: --dataset.root, --dataset.repo_id, --dataset.image_transforms.….
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from smolact.cli.command import command
from smolact.cli.dataset_flags import WhichDataset, dataset_folder
from smolact.cli.progress import announce
from smolact.datasets.transforms_config import ImageTransformsConfig
from smolact.errors import ConfigError
from smolact.settings import setting

if TYPE_CHECKING:
    from torch import Tensor

USAGE = "smolact dataset preview-transforms --dataset.repo_id=OWNER/NAME [--frames=[0, 100]] [--NAME=VALUE …]"


@dataclass
class PreviewedDataset(WhichDataset):
    """The dataset, and the transforms of its images."""

    image_transforms: ImageTransformsConfig = field(default_factory=ImageTransformsConfig)


@dataclass
class PreviewConfig:
    """Settings of `smolact dataset preview-transforms`."""

    dataset: PreviewedDataset = field(default_factory=PreviewedDataset)
    frames: list[int] | None = setting(
        None, "Frames of the dataset, numbered over all its episodes; three spread over it when null."
    )
    samples: int = setting(5, "Changed versions of each frame, and steps from end to end of each range.")
    seed: int = setting(1000, "Seed of the random changes.")
    output: Path = setting(Path("preview-transforms.png"), "Where the picture goes.")

    def __post_init__(self) -> None:
        """Check the ranges, and enable the transforms for the preview."""
        if self.samples < 2:
            raise ConfigError(f"--samples={self.samples} is too small: a range has 2 ends. Give 2 or more.")
        if self.frames == []:
            raise ConfigError("--frames=[] names no frame. Give some, such as --frames=[0], or leave it out.")
        if self.output.suffix != ".png":
            raise ConfigError(f"--output={self.output} must end in .png: that is what is written.")
        self.dataset.image_transforms = dataclasses.replace(self.dataset.image_transforms, enable=True)


@command(PreviewConfig, USAGE)
def run(config: PreviewConfig) -> None:
    """Draw the picture and print its path."""

    announce(f"Drawing {config.output} …")
    from smolact import durable
    from smolact.datasets.transforms_preview import draw_preview

    pictures = read_pictures(config.dataset, config.frames)
    png = draw_preview(pictures, config.dataset.image_transforms, config.samples, config.seed)
    durable.write_bytes(config.output, png)
    sys.stdout.write(f"{config.output}\n")


def read_pictures(
    section: PreviewedDataset, frames: Sequence[int] | None
) -> Mapping[str, Mapping[int, Tensor]]:
    """Fetch only the needed episodes; return camera to frame number to image, (3, H, W) uint8.

    Raises:
        ConfigError: no dataset is named, or it lacks a camera or one of the frames.
        SmolactError: the dataset can't be opened.
    """
    import numpy as np

    from smolact.datasets.metadata import LeRobotDatasetMetadata
    from smolact.datasets.reader import LeRobotDataset

    name = section.repo_id or section.root or ""
    meta = LeRobotDatasetMetadata(dataset_folder(section, patterns=["meta/**"]))
    if not meta.color_keys:
        raise ConfigError(f"{name} has no camera: its features are {', '.join(meta.features)}.")
    total = meta.total_frames
    chosen = frames or sorted({total * part // 6 for part in (1, 3, 5)})
    outside = [number for number in chosen if not 0 <= number < total]
    if outside:
        raise ConfigError(f"--frames has {outside[0]}: {name} has {total} frames, numbered 0 to {total - 1}.")
    episodes = np.searchsorted(meta.episodes.to_index, chosen, side="right")
    pictures: dict[str, dict[int, Tensor]] = {key: {} for key in meta.color_keys}
    for number, episode in zip(chosen, episodes.tolist(), strict=True):
        dataset = LeRobotDataset(
            name,
            root=section.root,
            episodes=[episode],
            revision=section.revision,
            return_uint8=True,
            cameras=meta.color_keys,
        )
        sample = dataset[number - int(meta.episodes.from_index[episode])]
        for key in meta.color_keys:
            pictures[key][number] = sample[key]
    return pictures

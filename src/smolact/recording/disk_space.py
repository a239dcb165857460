"""The disk space of a recording, estimated and checked before it begins."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from smolact.datasets.format import Feature
from smolact.errors import ConfigError

VIDEO_BYTES_PER_PIXEL = 0.06  # a high estimate for camera pictures at LeRobot's crf 30 with g = 2
PNG_BYTES_PER_PIXEL = 2.0


def estimate_bytes(features: Mapping[str, Feature], frames: float) -> int:
    """Estimate the bytes on disk of so many frames."""
    frame_bytes = 0.0
    for feature in features.values():
        if feature.is_image:
            _, height, width = feature.image_shape
            per_pixel = VIDEO_BYTES_PER_PIXEL if feature.dtype == "video" else PNG_BYTES_PER_PIXEL
            frame_bytes += per_pixel * height * width
        elif feature.is_numeric:
            frame_bytes += np.dtype(feature.dtype).itemsize * float(np.prod(feature.shape))
    return int(frames * frame_bytes)


def check_space(root: Path, needed: int) -> None:
    """Raise unless `needed` bytes are free on the disk of `root`, which need not exist yet.

    Raises:
        ConfigError: they are not.
    """
    folder = root.absolute()
    while not folder.is_dir():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ConfigError(
            f"This recording may take {needed / 1e9:.1f} GB, and the disk of {folder} has {free / 1e9:.1f} GB left. Free some "
            "space, record fewer or shorter episodes (--dataset.num_episodes, --dataset.episode_time_s), or elsewhere "
            "(--dataset.root)."
        )

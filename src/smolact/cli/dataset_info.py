"""`smolact dataset info`: how much there is, of what, in which form."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from smolact.cli.command import command
from smolact.cli.dataset_flags import WhichDataset, dataset_folder

if TYPE_CHECKING:
    from smolact.datasets.format import Feature
    from smolact.datasets.metadata import LeRobotDatasetMetadata

USAGE = "smolact dataset info --dataset.root=FOLDER"


@dataclass
class InfoConfig:
    """Settings of `smolact dataset info`."""

    dataset: WhichDataset = field(default_factory=WhichDataset)


@command(InfoConfig, USAGE)
def run(config: InfoConfig) -> None:
    """Print the table."""
    folder = dataset_folder(config.dataset)

    from smolact.datasets.metadata import LeRobotDatasetMetadata

    rows = describe(LeRobotDatasetMetadata(folder))
    width = max(len(name) for name, _ in rows)
    sys.stdout.writelines(f"{name.ljust(width)}  {value}\n" for name, value in rows)


def describe(meta: LeRobotDatasetMetadata) -> list[tuple[str, str]]:
    """Return rows of name and value; an empty name continues the row above."""
    from smolact.datasets.format import DEFAULT_FEATURES

    lengths = meta.episodes.length
    length_range = (
        f", {lengths.min()} to {lengths.max()} frames (median {int(sorted(lengths)[len(lengths) // 2])})"
        if len(lengths)
        else ""
    )
    seconds = meta.total_frames / meta.fps
    rows = [
        ("dataset", str(meta.root)),
        ("version", meta.codebase_version),
        ("robot", meta.robot_type or "(not said)"),
        ("episodes", f"{meta.total_episodes}{length_range}"),
        ("frames", f"{meta.total_frames} at {meta.fps:g} a second"),
        ("duration", f"{seconds / 3600:.2f} h" if seconds >= 3600 else f"{seconds:.1f} s"),
        ("size on disk", _megabytes(meta.root)),
    ]
    groups = {"cameras": meta.color_keys, "depth cameras": meta.depth_keys}
    groups["features"] = [
        name for name in meta.features if name not in {*meta.camera_keys, *DEFAULT_FEATURES}
    ]
    for title, names in groups.items():
        rows += [
            ("" if row else title, f"{name}: {_feature(meta.features[name])}")
            for row, name in enumerate(names)
        ]
    counts = Counter(task for tasks in meta.episodes.tasks for task in set(tasks))
    rows += [
        ("" if row else "tasks", f"{task!r}: {counts[task]} episode{'s' * (counts[task] != 1)}")
        for row, task in enumerate(dict.fromkeys([*meta.tasks.values(), *counts]))
    ]
    return rows


def _feature(feature: Feature) -> str:
    from smolact.datasets.format import flat_names

    if feature.is_image:
        _, height, width = feature.image_shape
        codec = feature.info.get("video.codec")
        details = [codec, feature.info.get("video.pix_fmt") if feature.is_depth else None]
        encoding = ", ".join(str(detail) for detail in details if detail)
        return f"{width} × {height}, {feature.dtype}" + (f" ({encoding})" if encoding else "")
    names = flat_names(feature.names)
    shape = " × ".join(map(str, feature.shape)) or "1"
    return f"{feature.dtype}, {shape}" + (f" ({', '.join(names)})" if names else "")


def _megabytes(root: Path) -> str:
    size = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.2f} MB"

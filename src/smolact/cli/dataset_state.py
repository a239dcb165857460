"""The commands on one dataset's state: `smolact dataset info`, `check` and `repair`.

Each command's docstring is the head of its help page.
"""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from smolact.cli.command import command
from smolact.cli.dataset_flags import WhichDataset, dataset_folder
from smolact.cli.main import aligned
from smolact.cli.progress import stages
from smolact.errors import ConfigError
from smolact.memory import file_size
from smolact.settings import setting

if TYPE_CHECKING:
    from smolact.datasets.format import Feature
    from smolact.datasets.metadata import LeRobotDatasetMetadata
    from smolact.datasets.repair import RepairReport

INFO = "smolact dataset info --dataset.root=FOLDER"
CHECK = "smolact dataset check --dataset.root=FOLDER [--quick]"
REPAIR = "smolact dataset repair --dataset.root=FOLDER [--dry_run] [--quick]"
MAX_SHOWN = 20
"""Number of faults that `repair` lists."""


@dataclass
class InfoConfig:
    """Settings of `smolact dataset info`."""

    dataset: WhichDataset = field(default_factory=WhichDataset)


@command(InfoConfig, INFO)
def info(config: InfoConfig) -> None:
    """`smolact dataset info`: how much there is, of what, in which form."""
    folder = dataset_folder(config.dataset)

    from smolact.datasets.metadata import LeRobotDatasetMetadata

    sys.stdout.write("\n".join(aligned(describe(LeRobotDatasetMetadata(folder)))) + "\n")


@dataclass
class CheckConfig(InfoConfig):
    """Settings of `smolact dataset check`."""

    quick: bool = setting(False, "Decode no pictures: metadata, numbers and the lengths of videos only.")


@command(CheckConfig, CHECK)
def check(config: CheckConfig) -> int:
    """`smolact dataset check`: everything that training relies on, a line a fault; exits with 1 if there are errors."""
    folder = dataset_folder(config.dataset)

    from smolact.datasets.depth import depth_notice
    from smolact.datasets.inspection import check_dataset
    from smolact.datasets.metadata import LeRobotDatasetMetadata

    with stages() as progress:
        faults = check_dataset(folder, config.quick, progress)
    for fault in faults:
        sys.stdout.write(f"{fault}\n")
    if not any(fault.severity == "error" and fault.location.startswith("meta") for fault in faults):
        depth_message = depth_notice(LeRobotDatasetMetadata(folder))
        sys.stdout.write(f"{depth_message}\n" if depth_message else "")
    errors = sum(fault.severity == "error" for fault in faults)
    verdict = "whole" if not faults else f"{errors} errors, {len(faults) - errors} warnings"
    sys.stdout.write(f"{folder}: {verdict}{' (pictures not decoded)' if config.quick else ''}\n")
    return 1 if errors else 0


@dataclass
class RepairConfig(InfoConfig):
    """Settings of `smolact dataset repair`."""

    dry_run: bool = setting(False, "Only tell what is whole and what would be put aside.")
    quick: bool = setting(False, "Decode no pictures.")


@command(RepairConfig, REPAIR)
def repair(config: RepairConfig) -> None:
    """`smolact dataset repair`: what a crash of any recorder or edit left becomes a whole dataset of every whole episode.

    Nothing is deleted: all other files are moved aside, and counted. It may be stopped at any time and run again.
    """
    name = config.dataset.root or config.dataset.repo_id
    if not name:
        raise ConfigError(f"Which dataset? {REPAIR}")

    from smolact.datasets.repair import repair

    with stages() as progress:
        result = repair(Path(name), config.dry_run, config.quick, progress)
    sys.stdout.write(_report(result, config.dry_run))


def describe(meta: LeRobotDatasetMetadata) -> list[tuple[str, str]]:
    """Return rows of name and value; an empty name continues the row above."""
    from smolact.datasets.format import DEFAULT_FEATURES

    lengths = meta.episodes.length
    length_range = (
        f", {lengths.min()} to {lengths.max()} frames (median {int(sorted(lengths)[len(lengths) // 2])})"
        if len(lengths)
        else ""
    )
    size = sum(path.stat().st_size for path in meta.root.rglob("*") if path.is_file())
    seconds = meta.total_frames / meta.fps
    rows = [
        ("dataset", str(meta.root)),
        ("version", meta.codebase_version),
        ("robot", meta.robot_type or "(not said)"),
        ("episodes", f"{meta.total_episodes}{length_range}"),
        ("frames", f"{meta.total_frames} at {meta.fps:g} a second"),
        ("duration", f"{seconds / 3600:.2f} h" if seconds >= 3600 else f"{seconds:.1f} s"),
        ("size on disk", file_size(size)),
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


def _report(result: RepairReport, dry_run: bool) -> str:
    if not result.needed:
        return f"{result.root}: whole, {result.episodes} episodes, {result.frames} frames; nothing to do\n"
    lines = [f"  {line}" for line in result.errors[:MAX_SHOWN]]
    if len(result.errors) > MAX_SHOWN:
        lines.append(f"  and {len(result.errors) - MAX_SHOWN} more")
    if result.restored:
        lines.append(
            f"  an edit was killed: the dataset as it was before it {'can be' if dry_run else 'was'} put back"
        )
    method = "made anew, the old one put aside" if result.rewritten else "only its metadata written"
    lines.append(
        f"{result.root}: {result.episodes} episodes are whole, {result.frames} frames; {result.counted} were counted ({method})"
    )
    if result.files:
        location = "" if dry_run else f" in {', '.join(map(str, result.folders))}"
        lines.append(f"put aside: {result.files} files, {file_size(result.bytes)}{location}")
    if dry_run:
        lines.append("nothing was changed (--dry_run)")
    return "\n".join(lines) + "\n"

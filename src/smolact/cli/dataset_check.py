"""`smolact dataset check`: everything that training relies on, a line a fault; exits with 1 if there are errors."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

from smolact.cli.command import command
from smolact.cli.dataset_flags import WhichDataset, dataset_folder
from smolact.cli.progress import stages
from smolact.settings import setting

USAGE = "smolact dataset check --dataset.root=FOLDER [--quick]"


@dataclass
class CheckConfig:
    """Settings of `smolact dataset check`."""

    dataset: WhichDataset = field(default_factory=WhichDataset)
    quick: bool = setting(False, "Decode no pictures: metadata, numbers and the lengths of videos only.")


@command(CheckConfig, USAGE)
def run(config: CheckConfig) -> int:
    """Print one line per fault, and a summary; return 1 if there are errors."""
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

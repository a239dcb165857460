"""`smolact dataset repair`: what a crash of any recorder or edit left becomes a whole dataset of every whole episode.

Nothing is deleted: all else is put aside, and told. It may be stopped at any time and run again.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from smolact.cli.command import command
from smolact.cli.dataset_flags import WhichDataset
from smolact.cli.progress import stages
from smolact.errors import ConfigError
from smolact.settings import setting

if TYPE_CHECKING:
    from smolact.datasets.repair import RepairReport

USAGE = "smolact dataset repair --dataset.root=FOLDER [--dry_run] [--quick]"
MAX_SHOWN = 20


@dataclass
class RepairConfig:
    """Settings of `smolact dataset repair`."""

    dataset: WhichDataset = field(default_factory=WhichDataset)
    dry_run: bool = setting(False, "Only tell what is whole and what would be put aside.")
    quick: bool = setting(False, "Decode no pictures.")


@command(RepairConfig, USAGE)
def run(config: RepairConfig) -> None:
    """Repair the dataset, and print the faults and changes."""
    name = config.dataset.root or config.dataset.repo_id
    if not name:
        raise ConfigError(f"Which dataset? {USAGE}")

    from smolact.datasets.repair import repair

    with stages() as progress:
        result = repair(Path(name), config.dry_run, config.quick, progress)
    sys.stdout.write(_report(result, config.dry_run))


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
        lines.append(f"put aside: {result.files} files, {result.bytes / 1e6:.2f} MB{location}")
    if dry_run:
        lines.append("nothing was changed (--dry_run)")
    return "\n".join(lines) + "\n"

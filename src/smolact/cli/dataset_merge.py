"""`smolact dataset merge`: several datasets with the same features, one after the other, as a new one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from smolact.cli.dataset_edit import apply_edit, open_source, parse_edit, require_flag
from smolact.cli.dataset_flags import WhichDataset
from smolact.settings import setting

USAGE = "smolact dataset merge --datasets=[FOLDER, OWNER/NAME, …] --output=FOLDER"


@dataclass
class MergeConfig:
    """Settings of `smolact dataset merge`."""

    datasets: list[str] | None = setting(None, "The datasets, in order: folders or Hub ids.")
    output: Path | None = setting(None, "A new folder for the result.")
    reorder_names: bool = setting(
        False,
        "Where a dataset has the first one's joints (the same names) in another order, put their numbers into the first one's.",
    )
    robot_type: str | None = setting(
        None, "What the new dataset says of its robot, if the datasets name different ones."
    )
    quick: bool = setting(False, "Do not decode the pictures of the result when it is checked.")


def run(argv: Sequence[str]) -> int:
    """Write the new dataset."""
    config = parse_edit(MergeConfig, argv, USAGE, __doc__)
    if config is None:
        return 0
    require_flag(config.datasets, "--datasets", USAGE)
    require_flag(config.output, "--output", USAGE)

    from smolact.datasets.edit import merge

    sources = [open_source(WhichDataset(repo_id=name)) for name in config.datasets or []]
    plan = merge(sources, reorder_names=config.reorder_names, robot_type=config.robot_type)
    apply_edit(plan, config.output, config.quick)
    return 0

"""`smolact dataset stats`: all statistics, computed again from the frames.

They are exact; pictures of 300 pixels a side or more are counted on a grid of about 150 points a side.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from smolact.cli.dataset_edit import EditConfig, apply_edit, open_source, parse_edit

USAGE = "smolact dataset stats --dataset.root=FOLDER [--output=FOLDER]"


@dataclass
class StatsConfig(EditConfig):
    """Settings of `smolact dataset stats`."""


def run(argv: Sequence[str]) -> int:
    """Write the new dataset."""
    config = parse_edit(StatsConfig, argv, USAGE, __doc__)
    if config is None:
        return 0
    source = open_source(config.dataset, to_new_folder=config.output is not None)

    from smolact.datasets.edit import whole

    apply_edit(dataclasses.replace(whole(source), recompute=True), config.output, config.quick)
    return 0

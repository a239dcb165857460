"""`smolact dataset compact`: many small files become few of the format's sizes; videos are joined as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from smolact.cli.dataset_edit import EditConfig, apply_edit, open_source, parse_edit

USAGE = "smolact dataset compact --dataset.root=FOLDER [--output=FOLDER]"


@dataclass
class CompactConfig(EditConfig):
    """Settings of `smolact dataset compact`."""


def run(argv: Sequence[str]) -> int:
    """Write the new dataset."""
    config = parse_edit(CompactConfig, argv, USAGE, __doc__)
    if config is None:
        return 0
    source = open_source(config.dataset, to_new_folder=config.output is not None)

    from smolact.datasets.edit import whole

    apply_edit(whole(source), config.output, config.quick)
    return 0

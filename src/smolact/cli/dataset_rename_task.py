"""`smolact dataset rename-task`: another text for an instruction; one that is there already joins both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from smolact.cli.dataset_edit import EditConfig, apply_edit, open_source, parse_edit, require_flag
from smolact.settings import setting

USAGE = "smolact dataset rename-task --dataset.root=FOLDER --old=TEXT --new=TEXT [--output=FOLDER]"


@dataclass
class RenameConfig(EditConfig):
    """Settings of `smolact dataset rename-task`."""

    old: str | None = setting(None, "The task as it is.")
    new: str | None = setting(None, "What it is to be.")


def run(argv: Sequence[str]) -> int:
    """Write the new dataset."""
    config = parse_edit(RenameConfig, argv, USAGE, __doc__)
    if config is None:
        return 0
    require_flag(config.old, "--old", USAGE)
    require_flag(config.new, "--new", USAGE)
    source = open_source(config.dataset, to_new_folder=config.output is not None)

    from smolact.datasets.edit import rename_task

    apply_edit(rename_task(source, config.old or "", config.new or ""), config.output, config.quick)
    return 0

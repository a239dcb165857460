"""`smolact dataset delete`: the dataset without some of its episodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from smolact.cli.dataset_edit import EditConfig, apply_edit, open_source, parse_edit, require_flag
from smolact.settings import setting

USAGE = "smolact dataset delete --dataset.root=FOLDER --episodes=[3, 7] [--output=FOLDER]"


@dataclass
class DeleteConfig(EditConfig):
    """Settings of `smolact dataset delete`."""

    episodes: list[int] | None = setting(None, "The episodes to delete, numbered from 0.")


def run(argv: Sequence[str]) -> int:
    """Write the new dataset."""
    config = parse_edit(DeleteConfig, argv, USAGE, __doc__)
    if config is None:
        return 0
    require_flag(config.episodes, "--episodes", USAGE)
    source = open_source(config.dataset, to_new_folder=config.output is not None)

    from smolact.datasets.edit import delete

    apply_edit(delete(source, config.episodes or []), config.output, config.quick)
    return 0

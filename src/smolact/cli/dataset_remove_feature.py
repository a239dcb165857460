"""`smolact dataset remove-feature`: the dataset without some of its cameras or columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from smolact.cli.dataset_edit import EditConfig, apply_edit, open_source, parse_edit, require_flag
from smolact.settings import setting

USAGE = "smolact dataset remove-feature --dataset.root=FOLDER --features=[NAME] [--output=FOLDER]"


@dataclass
class RemoveConfig(EditConfig):
    """Settings of `smolact dataset remove-feature`."""

    features: list[str] | None = setting(None, "The features to leave out.")


def run(argv: Sequence[str]) -> int:
    """Write the new dataset."""
    config = parse_edit(RemoveConfig, argv, USAGE, __doc__)
    if config is None:
        return 0
    require_flag(config.features, "--features", USAGE)
    source = open_source(config.dataset, to_new_folder=config.output is not None)

    from smolact.datasets.edit import remove_features

    apply_edit(remove_features(source, config.features or []), config.output, config.quick)
    return 0

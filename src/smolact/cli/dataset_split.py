"""`smolact dataset split`: several datasets of one, each a share of the episodes or a list of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smolact.cli.dataset_edit import EditConfig, apply_edit, open_source, parse_edit
from smolact.errors import ConfigError
from smolact.settings import setting

USAGE = "smolact dataset split --dataset.root=FOLDER --parts={train: 0.8, test: 0.2} --output=FOLDER"


@dataclass
class SplitConfig(EditConfig):
    """Settings of `smolact dataset split`."""

    parts: dict[str, Any] = setting(
        dict, "Name to fraction (of the episodes, in order) or to a list of episodes."
    )


def run(argv: Sequence[str]) -> int:
    """Write the new datasets."""
    config = parse_edit(SplitConfig, argv, USAGE, __doc__)
    if config is None:
        return 0
    if not config.parts or config.output is None:
        raise ConfigError(f"Which parts, and where to? {USAGE}")
    source = open_source(config.dataset)

    from smolact.datasets.edit import split

    for name, part in config.parts.items():
        numbers = isinstance(part, list) and all(type(number) is int for number in part)
        if Path(name).name != name or not (numbers or type(part) in (int, float)):
            raise ConfigError(
                f"--parts has {name!r}: {part!r}; expected a folder's name, and a fraction or a list of episodes."
            )
    for name, plan in split(source, config.parts).items():
        apply_edit(plan, config.output / name, config.quick)
    return 0

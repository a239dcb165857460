"""What the commands that make a new dataset have in common: where it goes, and how it is told."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from smolact.cli.dataset_flags import WhichDataset, dataset_folder
from smolact.cli.help import asks_for_help, help_text
from smolact.cli.parsing import parse
from smolact.cli.progress import stages
from smolact.errors import ConfigError
from smolact.settings import setting

if TYPE_CHECKING:
    from smolact.datasets.edit import EditPlan
    from smolact.datasets.sources import Source

Config = TypeVar("Config")


@dataclass
class EditConfig:
    """What all edits take."""

    dataset: WhichDataset = field(default_factory=WhichDataset)
    output: Path | None = setting(
        None,
        "A new folder for the result; when null, it takes the place of the old dataset once it is checked.",
    )
    quick: bool = setting(False, "Do not decode the pictures of the result when it is checked.")


def parse_edit(config: type[Config], argv: Sequence[str], usage: str, doc: str | None) -> Config | None:
    """The settings, or None when help was asked for and shown."""
    if asks_for_help(argv):
        sys.stdout.write(help_text(config, usage, (doc or "").strip(), argv) + "\n")
        return None
    return parse(config, argv)[0]


def open_source(which: WhichDataset, anew: bool = True, usage: str = "") -> Source:
    """The dataset that is to be changed.

    Raises:
        ConfigError: it would have to become another version in its own place.
    """
    from smolact.datasets.rewrite import restore
    from smolact.datasets.sources import Source

    restore(Path(which.root or which.repo_id or "."))
    source = Source(dataset_folder(which))
    version = source.meta.codebase_version
    if version != "v3.0" and not anew:
        raise ConfigError(
            f"{source.meta.root} is of version {version}, and edits write v3.0. Give --output=FOLDER for the result, or "
            "convert it first: smolact dataset convert --version=v3.0"
        )
    return source


def apply_edit(plan: EditPlan, output: Path | None, quick: bool) -> None:
    """Make the dataset, and say where it is."""
    from smolact.datasets.rewrite import build, replace

    with stages() as progress:
        made = replace(plan, quick, progress) if output is None else build(plan, output, quick, progress)
    frames = sum(int(plan.sources[place].meta.episodes.length[number]) for place, number in plan.episodes)
    sys.stdout.write(f"{made}: {len(plan.episodes)} episodes, {frames} frames, {plan.version}\n")


def require_flag(value: object, flag: str, usage: str) -> None:
    """Whether a setting was given.

    Raises:
        ConfigError: it was not.
    """
    if value is None or value == []:
        raise ConfigError(f"{flag} is missing: {usage}")

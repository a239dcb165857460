"""Settings and functions shared by the commands that write a new dataset."""

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
    """Settings of every edit command."""

    dataset: WhichDataset = field(default_factory=WhichDataset)
    output: Path | None = setting(
        None,
        "A new folder for the result; when null, it takes the place of the old dataset once it is checked.",
    )
    quick: bool = setting(False, "Do not decode the pictures of the result when it is checked.")


def parse_edit(config: type[Config], argv: Sequence[str], usage: str, doc: str | None) -> Config | None:
    """Parse the settings; return None after printing help."""
    if asks_for_help(argv):
        sys.stdout.write(help_text(config, usage, (doc or "").strip(), argv) + "\n")
        return None
    return parse(config, argv)[0]


def open_source(which: WhichDataset, to_new_folder: bool = True, usage: str = "") -> Source:
    """Open the dataset to edit, after undoing an edit that was killed.

    Raises:
        ConfigError: it is not v3.0, and the result would replace it in place.
    """
    from smolact.datasets.rewrite import restore
    from smolact.datasets.sources import Source

    restore(Path(which.root or which.repo_id or "."))
    source = Source(dataset_folder(which))
    version = source.meta.codebase_version
    if version != "v3.0" and not to_new_folder:
        raise ConfigError(
            f"{source.meta.root} is of version {version}, and edits write v3.0. Give --output=FOLDER for the result, or "
            "convert it first: smolact dataset convert --version=v3.0"
        )
    return source


def apply_edit(plan: EditPlan, output: Path | None, quick: bool) -> None:
    """Write the dataset, and print its folder and size."""
    from smolact.datasets.rewrite import build, replace

    with stages() as progress:
        folder = replace(plan, quick, progress) if output is None else build(plan, output, quick, progress)
    frames = sum(int(plan.sources[source].meta.episodes.length[episode]) for source, episode in plan.episodes)
    sys.stdout.write(f"{folder}: {len(plan.episodes)} episodes, {frames} frames, {plan.version}\n")


def require_flag(value: object, flag: str, usage: str) -> None:
    """Raise a `ConfigError` unless a setting was given.

    Raises:
        ConfigError: it was not given.
    """
    if value is None or value == []:
        raise ConfigError(f"{flag} is missing: {usage}")

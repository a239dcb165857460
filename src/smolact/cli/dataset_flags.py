"""The dataset section shared by the dataset commands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from smolact.errors import ConfigError
from smolact.settings import setting


@dataclass
class WhichDataset:
    """The dataset, by Hub id or folder."""

    repo_id: str | None = setting(None, "The dataset: a Hub id (owner/name) or a local folder.")
    root: str | None = setting(None, "A local folder that holds the dataset; no network call is made then.")
    revision: str | None = setting(None, "Branch, tag or commit of the dataset on the Hub.")

    def __post_init__(self) -> None:
        self.root = str(Path(self.root).expanduser()) if self.root else self.root


def dataset_folder(which: WhichDataset, patterns: Sequence[str] | None = None) -> Path:
    """Return the folder of the dataset, complete or with the files of these glob patterns.

    Raises:
        ConfigError: no dataset is named.
        NotFoundError, HubError: the dataset does not exist, or can't be downloaded.
    """
    from smolact.hub import find_folder

    name = which.repo_id or which.root
    if not name:
        raise ConfigError("Which dataset? Give --dataset.root=FOLDER or --dataset.repo_id=OWNER/NAME.")
    return find_folder(name, "dataset", root=which.root, patterns=patterns, revision=which.revision)

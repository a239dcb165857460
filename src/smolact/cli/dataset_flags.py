"""What the commands about a dataset have in common: which dataset."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from smolact.errors import ConfigError
from smolact.settings import setting


@dataclass
class WhichDataset:
    """Which dataset."""

    repo_id: str | None = setting(None, "The dataset: a Hub id (owner/name) or a local folder.")
    root: str | None = setting(None, "A local folder that holds the dataset; no network call is made then.")
    revision: str | None = setting(None, "Branch, tag or commit of the dataset on the Hub.")


def dataset_folder(which: WhichDataset) -> Path:
    """The folder of the dataset, all of it.

    Raises:
        ConfigError: none is named.
        NotFoundError, HubError: there is no such dataset, or it can't be fetched.
    """
    from smolact.hub import find_folder

    name = which.repo_id or which.root
    if not name:
        raise ConfigError("Which dataset? Give --dataset.root=FOLDER or --dataset.repo_id=OWNER/NAME.")
    return find_folder(name, "dataset", root=which.root, revision=which.revision)

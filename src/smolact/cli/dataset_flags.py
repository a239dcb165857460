"""What the commands about a dataset have in common: which dataset, and the bar that shows how far they are."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from smolact.errors import ConfigError
from smolact.settings import setting

PATIENCE = 2.0  # seconds before a bar shows


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


@contextlib.contextmanager
def progress_bar() -> Iterator[Callable[[str, int, int], None]]:
    """Yield a callback `(what, done, total)` that draws a bar on a terminal, once this lasts over two seconds."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    begun, tasks = time.monotonic(), {}

    def show(what: str, done: int, total: int) -> None:
        if not sys.stderr.isatty() or time.monotonic() - begun < PATIENCE:
            return
        if what not in tasks:
            bar.start()
            tasks[what] = bar.add_task(what, total=total)
        bar.update(tasks[what], completed=done)

    try:
        yield show
    finally:
        if tasks:
            bar.stop()

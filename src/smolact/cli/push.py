"""`smolact push`: publish a checkpoint or a dataset on the Hugging Face Hub, with a card that says what it is."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from smolact.cli.command import command
from smolact.cli.progress import announce
from smolact.errors import ConfigError, NotFoundError, list_siblings
from smolact.memory import file_size
from smolact.settings import setting

if TYPE_CHECKING:
    from smolact.uploads import Upload

USAGE = "smolact push FOLDER OWNER/NAME [--private] [--dry-run]"
MAX_FILES = 20
"""Number of files that are listed; the rest is only counted."""


@dataclass
class PushConfig:
    """Settings of `smolact push`."""

    private: bool = setting(False, "Make a new repository private; else it is as its owner's are by default.")
    revision: str | None = setting(None, "The branch to write, made if need be; the main one when null.")
    dry_run: bool = setting(
        False,
        "Show what would be published, and the card; nothing is sent or asked.",
        aliases=("dry-run",),
    )
    license: str | None = setting(
        None, "The licence, by the Hub's name for it, such as apache-2.0; for a policy its own when null."
    )
    tags: list[str] = setting(list, "Further tags for the card, as [a, b].")
    results: list[Path] = setting(
        list, "Evaluations for a policy's card, as [FOLDER, …]: what `smolact eval` had as --output_dir."
    )
    message: str | None = setting(None, "The commit's message.")


@command(PushConfig, USAGE)
def run(config: PushConfig, words: Sequence[str]) -> None:
    """List the files, publish them, and print the page's address."""
    if len(words) != 2:
        raise ConfigError(f"`smolact push` needs a folder and a name on the Hub: {USAGE}")
    folder, repo_id = words

    announce(f"Reading {folder} …")
    from smolact.uploads import publish

    with contextlib.ExitStack() as stack:
        upload = collect_upload(folder, repo_id, config, stack)
        sys.stdout.write(listing(upload, repo_id))
        if config.dry_run:
            card = upload.files["README.md"]
            assert isinstance(card, bytes)
            sys.stdout.write(f"\n{card.decode()}\nNothing was sent: this was a dry run.\n")
            return
        sys.stdout.flush()
        page = publish(
            upload,
            repo_id,
            private=config.private or None,
            revision=config.revision,
            message=config.message,
        )
    sys.stdout.write(f"Published: {page}\n")


def collect_upload(name: str, repo_id: str, config: PushConfig, stack: contextlib.ExitStack) -> Upload:
    """Collect the files of a dataset or policy; a dataset stays locked until the `stack` closes.

    Raises:
        NotFoundError: the folder does not exist, or contains neither.
        SmolactError: it is damaged, or must not be published.
    """
    from smolact.hub import local_folder

    folder = local_folder(name, "dataset")
    if folder is None:
        raise NotFoundError(f"The folder {name} does not exist. {list_siblings(Path(name).absolute())}")
    if (folder / "meta/info.json").is_file():
        from smolact.datasets.lock import FolderLock
        from smolact.datasets.sharing import dataset_upload

        if config.results:
            raise ConfigError("--results is for policies, and a dataset has none. Leave it out.")
        stack.enter_context(FolderLock(folder))
        return dataset_upload(folder, name=repo_id, license=config.license, tags=config.tags)

    from smolact.policies.sharing import contents, local_checkpoint, read_evaluation

    checkpoint = local_checkpoint(folder)
    return contents(
        checkpoint,
        name=repo_id,
        license=config.license,
        tags=config.tags,
        evaluations=[read_evaluation(path, checkpoint) for path in config.results],
    )


def listing(upload: Upload, repo_id: str) -> str:
    """Return the list of files, largest first, and notes."""
    sizes = sorted(upload.sizes.items(), key=lambda entry: -entry[1])
    rows = [f"  {file_size(size):>9}  {name}" for name, size in sizes[:MAX_FILES]]
    if len(sizes) > MAX_FILES:
        rest = sizes[MAX_FILES:]
        rows.append(f"  {file_size(sum(size for _, size in rest)):>9}  in {len(rest)} smaller files")
    total = file_size(sum(upload.sizes.values()))
    tag = f", tagged {upload.tag}" if upload.tag else ""
    lines = [f"{upload.kind} {repo_id}: {len(sizes)} files, {total}{tag}", *rows, *upload.notes]
    return "\n".join(lines) + "\n"

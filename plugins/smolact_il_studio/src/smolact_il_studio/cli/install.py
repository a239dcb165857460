"""`smolact il-studio install`: put smolact's policies into a checkout of IL-Studio; what was there is kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from smolact_il_studio.cli import change_checkout


def run(argv: Sequence[str]) -> int:
    """Install the files and print the changes."""
    return change_checkout("install", (__doc__ or "").strip(), argv, _install)


def _install(checkout: Path, force: bool) -> list[tuple[str, str]]:
    from smolact_il_studio.checkout import installed_files
    from smolact_il_studio.installation import install

    return [(row.path, row.done) for row in install(checkout, installed_files(), force=force)]

"""`smolact il-studio uninstall`: take smolact's policies out of a checkout of IL-Studio, and put back what was there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from smolact_il_studio.cli import change_checkout


def run(argv: Sequence[str]) -> int:
    """Uninstall the files and print the changes."""
    return change_checkout("uninstall", (__doc__ or "").strip(), argv, _uninstall)


def _uninstall(checkout: Path, force: bool) -> list[tuple[str, str]]:
    from smolact_il_studio.installation import uninstall

    return [(row.path, row.done) for row in uninstall(checkout, force=force)]

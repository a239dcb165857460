"""`smolact dataset COMMAND …`: what can be done with a dataset, one module a command."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from smolact.cli.main import DONE, MISUSED, Command, command_rows, find_command

COMMANDS = {
    command.name: command
    for command in (
        Command("info", "how much there is, of what, in which form", "smolact.cli.dataset_info"),
        Command("check", "everything that training relies on, a line a fault", "smolact.cli.dataset_check"),
        Command(
            "preview-transforms",
            "a picture of what training's random image changes do to a dataset's cameras",
            "smolact.cli.dataset_preview_transforms",
        ),
    )
}


def run(argv: Sequence[str]) -> int:
    """Run one of the commands, or list them."""
    if not argv or argv[0] in ("--help", "-h", "help"):
        sys.stdout.write(
            f"Look at a dataset.\n\nusage: smolact dataset COMMAND --name=value …\n\n{command_rows(COMMANDS)}\n\n"
            "smolact dataset COMMAND --help lists a command's settings.\n"
        )
        return DONE if argv else MISUSED
    return find_command(argv[0], COMMANDS, "dataset").run(argv[1:])

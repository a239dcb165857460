"""`smolact policy COMMAND …`: what can be done with a trained policy, one module a command."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from smolact.cli.main import DONE, MISUSED, Command, command_rows, find_command

COMMANDS = {
    command.name: command
    for command in (
        Command(
            "merge-adapters",
            "a plain checkpoint from one of adapters (LoRA), which opens without peft",
            "smolact.cli.policy_merge_adapters",
        ),
    )
}


def run(argv: Sequence[str]) -> int:
    """Run one of the commands, or list them."""
    if not argv or argv[0] in ("--help", "-h", "help"):
        sys.stdout.write(
            f"Change a trained policy.\n\nusage: smolact policy COMMAND --name=value …\n\n{command_rows(COMMANDS)}\n\n"
            "smolact policy COMMAND --help lists a command's settings.\n"
        )
        return DONE if argv else MISUSED
    return find_command(argv[0], COMMANDS, "policy").run(argv[1:])

"""`smolact policy COMMAND …`: the commands on trained policies, one module per command."""

from __future__ import annotations

from collections.abc import Sequence

from smolact.cli.main import Command, by_name, run_group

COMMANDS = by_name(
    Command(
        "merge-adapters",
        "a plain checkpoint from one of adapters (LoRA), which opens without peft",
        "smolact.cli.policy_merge_adapters",
    ),
)


def run(argv: Sequence[str]) -> int:
    """Run one of the commands, or list them."""
    return run_group("policy", "Change a trained policy.", COMMANDS, argv)

"""`smolact convert`: a SmolVLA checkpoint that LeRobot plays with smolact's engine, or back; weights are linked."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from smolact.cli.command import command
from smolact.cli.progress import announce
from smolact.errors import ConfigError
from smolact.settings import setting

USAGE = "smolact convert CHECKPOINT --to=smolvla_fast|smolvla --output=FOLDER"


@dataclass
class ConvertConfig:
    """Settings of `smolact convert`."""

    to: str | None = setting(
        None,
        "smolvla_fast, which LeRobot knows with the plugin lerobot_policy_smolact, or smolvla, which it knows by itself.",
    )
    output: Path | None = setting(None, "The new folder.")
    revision: str | None = setting(None, "Branch, tag or commit of the checkpoint on the Hub.")


@command(ConvertConfig, USAGE)
def run(config: ConvertConfig, words: Sequence[str]) -> None:
    """Convert the checkpoint and print the new folder."""
    if len(words) != 1 or config.to is None or config.output is None:
        raise ConfigError(f"`smolact convert` needs one CHECKPOINT, --to and --output: {USAGE}")

    announce(f"Reading {words[0]} …")
    from smolact.policies.conversion import convert_checkpoint

    written = convert_checkpoint(words[0], config.to, config.output, revision=config.revision)
    sys.stdout.write(f"{written}\n")

"""`smolact convert`: a SmolVLA checkpoint that LeRobot plays with smolact's engine, or back; weights are linked."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from smolact.cli.help import asks_for_help, help_text
from smolact.cli.parsing import parse
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


def run(argv: Sequence[str]) -> int:
    """Convert the checkpoint and print the new folder."""
    if asks_for_help(argv):
        sys.stdout.write(help_text(ConvertConfig, USAGE, (__doc__ or "").strip(), argv) + "\n")
        return 0
    positional = [word for word in argv if not word.startswith("-")]
    config, _ = parse(ConvertConfig, [word for word in argv if word.startswith("-")])
    if len(positional) != 1 or config.to is None or config.output is None:
        raise ConfigError(f"`smolact convert` needs one CHECKPOINT, --to and --output: {USAGE}")

    announce(f"Reading {positional[0]} …")
    from smolact.policies.conversion import convert_checkpoint

    written = convert_checkpoint(positional[0], config.to, config.output, revision=config.revision)
    sys.stdout.write(f"{written}\n")
    return 0

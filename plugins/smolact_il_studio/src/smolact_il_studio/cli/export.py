"""`smolact il-studio export`: a checkpoint that IL-Studio trained, as one of smolact, which LeRobot opens too."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from smolact.cli.help import asks_for_help, help_text
from smolact.cli.main import DONE
from smolact.cli.progress import announce
from smolact.errors import ConfigError
from smolact.parsing import parse
from smolact.settings import setting

USAGE = "smolact il-studio export CHECKPOINT --output=FOLDER"


@dataclass
class ExportConfig:
    """Settings of `smolact il-studio export`."""

    output: Path | None = setting(None, "The new folder.")


def run(argv: Sequence[str]) -> int:
    """Export the checkpoint and print the new folder."""
    if asks_for_help(argv):
        sys.stdout.write(help_text(ExportConfig, USAGE, (__doc__ or "").strip(), argv) + "\n")
        return DONE
    positional = [word for word in argv if not word.startswith("-")]
    config = parse(ExportConfig, [word for word in argv if word.startswith("-")])
    if len(positional) != 1 or config.output is None:
        raise ConfigError(f"`smolact il-studio export` needs one CHECKPOINT and --output: {USAGE}")

    announce(f"Reading {positional[0]} …")
    from smolact_il_studio.export import export_checkpoint

    sys.stdout.write(f"{export_checkpoint(positional[0], config.output)}\n")
    return DONE

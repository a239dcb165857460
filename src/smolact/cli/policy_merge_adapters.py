"""`smolact policy merge-adapters`: a plain checkpoint from one of adapters (LoRA), which opens without peft."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

from smolact.cli.command import command
from smolact.cli.progress import announce
from smolact.errors import ConfigError
from smolact.settings import setting

USAGE = "smolact policy merge-adapters --policy.path=CHECKPOINT --output=FOLDER"


@dataclass
class AdaptedPolicy:
    """The policy with adapters."""

    path: str | None = setting(None, "The checkpoint of adapters: its folder, its run's folder, or a Hub id.")
    revision: str | None = setting(None, "Branch, tag or commit of the checkpoint on the Hub.")


@dataclass
class MergeConfig:
    """Settings of `smolact policy merge-adapters`."""

    policy: AdaptedPolicy = field(default_factory=AdaptedPolicy)
    output: Path | None = setting(None, "The new folder that the merged policy goes to.")


@command(MergeConfig, USAGE)
def run(config: MergeConfig) -> None:
    """Merge the adapters and print the new folder."""
    if config.policy.path is None or config.output is None:
        missing = "--policy.path=CHECKPOINT" if config.policy.path is None else "--output=FOLDER"
        raise ConfigError(f"`smolact policy merge-adapters` needs {missing}: {USAGE}")

    announce(f"Loading {config.policy.path} …")
    from smolact.policies.merging import merge_checkpoint

    sys.stdout.write(
        f"{merge_checkpoint(config.policy.path, config.output, revision=config.policy.revision)}\n"
    )

"""`smolact doctor`: what a checkpoint or dataset is, what would go wrong with another, and the flags that settle it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from smolact.cli.help import asks_for_help, help_text
from smolact.cli.main import DONE, FAILED
from smolact.cli.parsing import parse
from smolact.errors import ConfigError
from smolact.settings import setting

USAGE = "smolact doctor CHECKPOINT_OR_DATASET [--with=DATASET_OR_ENV]"


@dataclass
class DoctorConfig:
    """What `smolact doctor` takes."""

    meets: str | None = setting(
        None,
        "What it is to meet: a dataset (folder or Hub id), an environment, or a checkpoint.",
        aliases=("with",),
    )
    stats_key: str | None = setting(
        None,
        "Which dataset's statistics to normalize with, where a checkpoint holds those of several.",
        aliases=("policy.stats_key",),
    )
    rename_map: dict[str, str] = setting(dict, "The dataset's names to the policy's.")


def run(argv: Sequence[str]) -> int:
    """Print what there is and what was found; the exit code says whether all is well."""
    if asks_for_help(argv):
        sys.stdout.write(help_text(DoctorConfig, USAGE, (__doc__ or "").strip(), argv) + "\n")
        return DONE
    named = [word for word in argv if not word.startswith("-")]
    config, _ = parse(DoctorConfig, [word for word in argv if word.startswith("-")])
    if len(named) != 1:
        raise ConfigError(f"`smolact doctor` looks at one checkpoint or dataset: {USAGE}")

    from smolact.training.doctor import diagnose

    found = diagnose(named[0], config.meets, stats_key=config.stats_key, rename_map=config.rename_map)
    width = max(len(name) for name, _ in found.rows)
    lines = [f"{name.ljust(width)}  {value}".rstrip() for name, value in found.rows]
    if found.table:
        lines += ["", found.table]
    if found.findings:
        lines += ["", *(f"{'ok   ' if one.is_well else 'FAULT'}  {one.text}" for one in found.findings)]
    sys.stdout.write("\n".join(lines) + "\n")
    return DONE if found.is_well else FAILED

"""`smolact doctor`: what a checkpoint or dataset is, what would go wrong with another, and the flags that settle it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smolact.cli.help import asks_for_help, help_text
from smolact.cli.main import DONE, FAILED
from smolact.cli.parsing import flag_value, parse
from smolact.cli.servers import RENAME_MAP
from smolact.errors import ConfigError
from smolact.settings import rest, setting
from smolact.training.sections import policy_fields

USAGE = "smolact doctor CHECKPOINT_OR_DATASET [--with=DATASET_OR_ENV] [--policy.NAME=VALUE …]"


@dataclass
class DiagnosedPolicy:
    """How the checkpoint is opened; further settings override those of its configuration."""

    path: str | None = setting(None, "The checkpoint; it can be named without a flag, too.")
    stats_key: str | None = setting(
        None, "Which dataset's statistics to normalize with, where a checkpoint holds those of several."
    )
    stats: str | None = setting(
        None, "A dataset (folder or Hub id) whose statistics are taken for what the checkpoint lacks."
    )
    settings: dict[str, Any] = rest(policy_fields)


@dataclass
class DoctorConfig:
    """What `smolact doctor` takes."""

    policy: DiagnosedPolicy = field(default_factory=DiagnosedPolicy)
    stats_key: str | None = setting(None, "As --policy.stats_key.")
    meets: str | None = setting(
        None,
        "What it is to meet: a dataset (folder or Hub id), an environment, or a checkpoint.",
        aliases=("with",),
    )
    rename_map: dict[str, str] = setting(dict, RENAME_MAP)


def run(argv: Sequence[str]) -> int:
    """Print what there is and what was found; the exit code says whether all is well."""
    if asks_for_help(argv):
        sys.stdout.write(help_text(DoctorConfig, USAGE, (__doc__ or "").strip(), argv) + "\n")
        return DONE
    named = [word for word in argv if not word.startswith("-")]
    flags = [word for word in argv if word.startswith("-")]
    config, _ = parse(DoctorConfig, [*flags, *_path_of_policy(named, flags)])
    if not named and config.policy.path:
        named = [config.policy.path]
    if len(named) != 1:
        raise ConfigError(f"`smolact doctor` looks at one checkpoint or dataset: {USAGE}")

    from smolact.training.doctor import diagnose

    found = diagnose(
        named[0],
        config.meets,
        stats_key=config.policy.stats_key or config.stats_key,
        stats=config.policy.stats,
        rename_map=config.rename_map,
        settings=config.policy.settings,
    )
    width = max(len(name) for name, _ in found.rows)
    lines = [f"{name.ljust(width)}  {value}".rstrip() for name, value in found.rows]
    if found.table:
        lines += ["", found.table]
    if found.findings:
        lines += ["", *(f"{one.label.ljust(5)}  {one.text}" for one in found.findings)]
    sys.stdout.write("\n".join(lines) + "\n")
    return DONE if found.is_well else FAILED


def _path_of_policy(named: Sequence[str], flags: Sequence[str]) -> list[str]:
    """The flag that says whose settings `--policy.…` are: of what is named, or of what a dataset meets."""
    if (
        not named
        or flag_value(flags, "policy.path")
        or not any(word.startswith("--policy.") for word in flags)
    ):
        return []
    is_dataset = (Path(named[0]) / "meta/info.json").is_file()
    path = flag_value(flags, "with") or flag_value(flags, "meets") if is_dataset else named[0]
    return [f"--policy.path={path}"] if path else []

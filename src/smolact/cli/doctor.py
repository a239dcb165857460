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
from smolact.cli.progress import announce
from smolact.cli.servers import RENAME_MAP
from smolact.errors import ConfigError
from smolact.settings import open_section, setting
from smolact.training.sections import EnvSection, policy_fields

USAGE = "smolact doctor CHECKPOINT_OR_DATASET [--with=DATASET_OR_ENV] [--policy.NAME=VALUE …]"


@dataclass
class DiagnosedPolicy:
    """How the checkpoint is opened; further settings override those of its configuration."""

    path: str | None = setting(
        None, "The checkpoint; it can be named without a flag, or --with what it is to meet, too."
    )
    stats_key: str | None = setting(
        None, "Which dataset's statistics to normalize with, where a checkpoint holds those of several."
    )
    stats: str | None = setting(
        None, "A dataset (folder or Hub id) whose statistics are taken for what the checkpoint lacks."
    )
    settings: dict[str, Any] = open_section(policy_fields)


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
    env: EnvSection = field(default_factory=EnvSection)


def run(argv: Sequence[str]) -> int:
    """Print what there is and what was found; the exit code says whether all is well."""
    if asks_for_help(argv):
        sys.stdout.write(help_text(DoctorConfig, USAGE, (__doc__ or "").strip(), argv) + "\n")
        return DONE
    named = [word for word in argv if not word.startswith("-")]
    flags = [word for word in argv if word.startswith("-")]
    config, _ = parse(DoctorConfig, [*flags, *_path_of_policy(named, flags)])
    name, other = _who_meets_whom(named, config)
    announce(f"Looking at {name}{f' and {other}' if other else ''} …")

    from smolact.training.doctor import diagnose

    found = diagnose(
        name,
        other,
        stats_key=config.policy.stats_key or config.stats_key,
        stats=config.policy.stats,
        rename_map=config.rename_map,
        settings=config.policy.settings,
        env=config.env,
    )
    width = max(len(name) for name, _ in found.rows)
    lines = [f"{name.ljust(width)}  {value}".rstrip() for name, value in found.rows]
    if found.table:
        lines += ["", found.table]
    if found.findings:
        lines += ["", *(f"{one.label.ljust(5)}  {one.text}" for one in found.findings)]
    sys.stdout.write("\n".join(lines) + "\n")
    return DONE if found.passed else FAILED


def _who_meets_whom(named: Sequence[str], config: DoctorConfig) -> tuple[str, str | None]:
    """What is looked at, and what it meets.

    Raises:
        ConfigError: nothing is named, or more than one checkpoint and what it meets; or a flag would change nothing.
    """
    policy, met = config.policy.path, config.meets or config.env.type
    if config.env.type not in (None, met):
        raise ConfigError(f"--with={met} and --env.type={config.env.type} name two things. Give one of them.")
    names = [*named, *([policy] if policy and policy not in (*named, met) else [])]
    if len(names) == 2 and policy and met is None and _is_dataset(names[0]):
        names, met = names[:1], policy
    if len(names) != 1:
        raise ConfigError(
            f"`smolact doctor` looks at one checkpoint or dataset{', not at ' if names else ''}{' and '.join(names)}: {USAGE}"
        )
    if met is None:
        given = {
            "env.task": config.env.task,
            "env.mapping": config.env.mapping,
            "env.kwargs": config.env.kwargs,
        }
        idle = [flag for flag, value in given.items() if value]
        if idle:
            raise ConfigError(f"--{idle[0]} is an environment's: name it, --with=ENV.")
    if met is None and _is_dataset(names[0]):
        given = {
            "stats_key": config.stats_key,
            "rename_map": config.rename_map,
        }
        idle = [flag for flag, value in given.items() if value]
        if idle:
            raise _policy_is_missing(idle[0], names[0])
    return names[0], met


def _is_dataset(name: str) -> bool:
    return (Path(name) / "meta/info.json").is_file()


def _policy_is_missing(flag: str, dataset: str) -> ConfigError:
    return ConfigError(
        f"--{flag} says how a policy is opened, and {dataset} is a dataset: name the policy that it is to meet, "
        "--with=CHECKPOINT."
    )


def _path_of_policy(named: Sequence[str], flags: Sequence[str]) -> list[str]:
    """The flag that says whose settings `--policy.…` are: of what is named, or of what a dataset meets."""
    if (
        not named
        or flag_value(flags, "policy.path")
        or not any(word.startswith("--policy.") for word in flags)
    ):
        return []
    path: str | None = named[0]
    if _is_dataset(named[0]):
        path = flag_value(flags, "with") or flag_value(flags, "meets")
        if path is None:
            first = next(word for word in flags if word.startswith("--policy."))
            raise _policy_is_missing(first[2:].partition("=")[0], named[0])
    return [f"--policy.path={path}"] if path else []

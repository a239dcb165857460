"""`smolact doctor`: what a checkpoint or dataset is, what would go wrong with another, and the flags that settle it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from smolact.cli.command import command, split_words
from smolact.cli.main import DONE, FAILED, aligned
from smolact.cli.progress import announce
from smolact.cli.servers import RENAME_MAP, CheckpointPolicy
from smolact.errors import ConfigError
from smolact.flags import flag_value
from smolact.parsing import parse
from smolact.settings import setting
from smolact.training.sections import EnvSection

USAGE = "smolact doctor CHECKPOINT_OR_DATASET [--with=DATASET_OR_ENV] [--policy.NAME=VALUE …]"


@dataclass
class DiagnosedPolicy(CheckpointPolicy):
    """The checkpoint to open; further settings override those of its configuration."""

    path: str | None = setting(
        None, "The checkpoint; it can be named without a flag, or --with what it is to meet, too."
    )


@dataclass
class DoctorConfig:
    """Settings of `smolact doctor`."""

    policy: DiagnosedPolicy = field(default_factory=DiagnosedPolicy)
    stats_key: str | None = setting(None, "As --policy.stats_key.")
    meets: str | None = setting(
        None,
        "What it is to meet: a dataset (folder or Hub id), an environment, or a checkpoint.",
        aliases=("with",),
    )
    rename_map: dict[str, str] = setting(dict, RENAME_MAP)
    env: EnvSection = field(default_factory=EnvSection)


@command(DoctorConfig, USAGE)
def run(argv: Sequence[str]) -> int:
    """Print the diagnosis; return `FAILED` if it did not pass."""
    words, flags = split_words(argv)
    config = parse(DoctorConfig, [*flags, *_policy_path_flag(words, flags)])
    name, other = _select_inputs(words, config)
    announce(f"Looking at {name}{f' and {other}' if other else ''} …")

    from smolact.training.doctor import diagnose

    diagnosis = diagnose(
        name,
        other,
        stats_key=config.policy.stats_key or config.stats_key,
        stats=config.policy.stats,
        rename_map=config.rename_map,
        settings=config.policy.settings,
        env=config.env,
    )
    lines = aligned(diagnosis.rows)
    if diagnosis.table:
        lines += ["", diagnosis.table]
    if diagnosis.findings:
        lines += ["", *(f"{finding.label.ljust(5)}  {finding.text}" for finding in diagnosis.findings)]
    sys.stdout.write("\n".join(lines) + "\n")
    return DONE if diagnosis.passed else FAILED


def _select_inputs(positional: Sequence[str], config: DoctorConfig) -> tuple[str, str | None]:
    """Return the checkpoint or dataset to diagnose, and its counterpart.

    Raises:
        ConfigError: no name or too many are given, or a flag would have no effect.
    """
    policy, other = config.policy.path, config.meets or config.env.type
    if config.env.type not in (None, other):
        raise ConfigError(
            f"--with={other} and --env.type={config.env.type} name two things. Give one of them."
        )
    names = [*positional, *([policy] if policy and policy not in (*positional, other) else [])]
    if len(names) == 2 and policy and other is None and _is_dataset(names[0]):
        names, other = names[:1], policy
    if len(names) != 1:
        raise ConfigError(
            f"`smolact doctor` looks at one checkpoint or dataset{', not at ' if names else ''}{' and '.join(names)}: {USAGE}"
        )
    if other is None:
        for name in ("task", "mapping", "kwargs"):
            if getattr(config.env, name):
                raise ConfigError(f"--env.{name} is an environment's: name it, --with=ENV.")
    if other is None and _is_dataset(names[0]):
        for name in ("stats_key", "rename_map"):
            if getattr(config, name):
                raise _missing_policy_error(name, names[0])
    return names[0], other


def _is_dataset(name: str) -> bool:
    return (Path(name) / "meta/info.json").is_file()


def _missing_policy_error(flag: str, dataset: str) -> ConfigError:
    return ConfigError(
        f"--{flag} says how a policy is opened, and {dataset} is a dataset: name the policy that it is to meet, "
        "--with=CHECKPOINT."
    )


def _policy_path_flag(positional: Sequence[str], flags: Sequence[str]) -> list[str]:
    """Return `--policy.path` for the settings `--policy.…`: the given checkpoint, or a dataset's counterpart."""
    if (
        not positional
        or flag_value(flags, "policy.path")
        or not any(word.startswith("--policy.") for word in flags)
    ):
        return []
    path: str | None = positional[0]
    if _is_dataset(positional[0]):
        path = flag_value(flags, "with") or flag_value(flags, "meets")
        if path is None:
            first = next(word for word in flags if word.startswith("--policy."))
            raise _missing_policy_error(first[2:].partition("=")[0], positional[0])
    return [f"--policy.path={path}"] if path else []

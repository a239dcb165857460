"""The settings of a run as they were given: saved with it, read again, and told as flags.

`training_state/settings.json` has every setting by its dotted name; null is what was not given. LeRobot's `train_config.json`,
which lies beside it, has what followed from them.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from smolact.errors import ConfigError
from smolact.files import read_json_object
from smolact.flags import ParsedValue, read_file
from smolact.parsing import flattened, section_class
from smolact.policies.configuration import PRETRAINED_MODEL, TRAIN_CONFIG
from smolact.policies.field_values import encode
from smolact.settings import INTERNAL, REST, flag_name
from smolact.training.run_folder import (
    CHECKPOINTS,
    LAST,
    OLD_GIVEN_SETTINGS,
    OLD_OWN_SETTINGS,
    SETTINGS,
    TRAINING_STATE,
    find_checkpoint,
    is_unfinished,
    read_begun,
)

_OF_ONE_CALL = ("resume", "check", "output_dir")
"""Settings that a run does not take over when it resumes."""


class Resumption(NamedTuple):
    """How a run resumes."""

    settings: list[ParsedValue]
    """The run's own settings and the changes."""
    checkpoint: Path | None
    """Its checkpoint; None if it was stopped before its first, and begins again."""
    changed: frozenset[str]
    """The names of the changes."""


def to_dict(section: Any, prefix: str = "") -> dict[str, Any]:
    """Return the settings of a dataclass as JSON values, by dotted name; of a section that is None, nothing."""
    values: dict[str, Any] = {}
    hints = typing.get_type_hints(type(section))
    for field in dataclasses.fields(section):
        value, name = getattr(section, field.name), prefix + flag_name(field)
        if INTERNAL in field.metadata or name in _OF_ONE_CALL:
            continue
        if REST in field.metadata:
            values |= {prefix + key: encode(item) for key, item in value.items()}
        elif dataclasses.is_dataclass(value):
            values |= to_dict(value, name + ".")
        elif section_class(hints[field.name]) is None:
            values[name] = encode(value)
    return values


def changed_flags(settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[str]:
    """Return a flag for each of a run's settings (`to_dict`) that is not the default."""
    return [
        f"--{name}={value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
        for name, value in settings.items()
        if value != defaults.get(name) and not (name == "policy.type" and settings.get("policy.path"))
    ]


def with_changes(cls: type, path: Path | None, flags: Iterable[ParsedValue]) -> list[ParsedValue]:
    """Return the settings of a file, if there is one, and of flags, for a `cls`."""
    changes = flattened(cls, flags)
    base = [] if path is None else flattened(cls, _settings_in(path))
    return [*_kept(base, changes), *changes]


def resumption(cls: type, location: Path, flags: Iterable[ParsedValue]) -> Resumption:
    """Return how the run at `location` (its folder, a checkpoint's, or a file in it) resumes, with changes by flags.

    Raises:
        NotFoundError, CheckpointError: there is no checkpoint, or none to resume from.
        ConfigError: a flag names another run, or changes what is fixed.
    """
    changes = flattened(cls, flags)
    changed = frozenset(item.name for item in changes)
    if is_unfinished(location):
        return Resumption([*_kept(flattened(cls, read_begun(location)), changes), *changes], None, changed)
    checkpoint = find_checkpoint(location)
    for item in changes:
        _check_change(item, location, checkpoint.parent.parent)
    policy = read_json_object(
        checkpoint / PRETRAINED_MODEL / "config.json", "Resume from another checkpoint."
    )
    settings = [
        item
        for item in flattened(cls, _settings_in(checkpoint / PRETRAINED_MODEL / TRAIN_CONFIG))
        if item.name not in _OF_ONE_CALL
    ]
    # The policy's class must not depend on a checkpoint elsewhere, from which it was fine-tuned.
    settings.append(ParsedValue.of("policy.type", policy.get("type")))
    last = checkpoint.parent / LAST  # its target may change before the run's folder is locked
    is_last = (location / CHECKPOINTS).is_dir() and last.exists() and last.resolve() == checkpoint
    return Resumption([*_kept(settings, changes), *changes], last if is_last else checkpoint, changed)


def _check_change(item: ParsedValue, location: Path, run: Path) -> None:
    """Raise a `ConfigError` if a setting can't change when a run resumes."""
    if item.name == "output_dir" and Path(str(getattr(item.value, "value", item.value))).resolve() != run:
        raise ConfigError(
            f"{item.source} is not the run of --config_path={location}, and a run goes on in its own folder. Drop "
            "--output_dir, or start a new run from the weights with --policy.path."
        )
    if item.name == "rename_map":
        raise ConfigError(
            "--rename_map can't change when a run is resumed: the checkpoint's map is used. Drop it."
        )
    if item.name.startswith("peft."):
        raise ConfigError(
            f"{item.source} can't change when a run is resumed: its adapters are there already. Drop it."
        )


def _kept(base: Sequence[ParsedValue], changes: Sequence[ParsedValue]) -> list[ParsedValue]:
    """Return what changes leave of settings: of --steps and --train_minutes a new one replaces the other."""
    changed = {item.name for item in changes}
    replaced = {"steps": "train_minutes", "train_minutes": "steps"}
    gone = {replaced[name] for name in changed & replaced.keys()}
    return [item for item in base if item.name not in gone]


def _settings_in(path: Path) -> Iterable[ParsedValue]:
    """Return the settings of a file by hand, of a run of smolact's, or of LeRobot's."""
    state = path.parent.parent / TRAINING_STATE
    if path.name != TRAIN_CONFIG:
        return read_file(path)
    if (state / SETTINGS).is_file():
        return read_file(state / SETTINGS)
    if (state / OLD_GIVEN_SETTINGS).is_file():
        return _older_settings(path, state)
    given = list(read_file(path))
    data = read_json_object(path, "Give a file of settings.")
    if data.get("use_policy_training_preset", True):  # these sections repeat the policy's own fields
        given = [item for item in given if item.name not in ("optimizer", "scheduler")]
    return given


def _older_settings(path: Path, state: Path) -> list[ParsedValue]:
    """Return the settings of a checkpoint of before `settings.json`: the names that were given lay in a file of their own."""
    remedy = "Resume from another checkpoint."
    data, own = read_json_object(path, remedy), read_json_object(state / OLD_OWN_SETTINGS, remedy)
    values: dict[str, Any] = {}
    for name in (*read_json_object(state / OLD_GIVEN_SETTINGS, remedy), "seed", "batch_size", "policy.type"):
        value: Any = data
        for part in {"eval_freq": "env_eval_freq"}.get(name, name).split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if value is not None and name not in _OF_ONE_CALL:
            values[name] = value
    if own.get("train_minutes") is not None:
        values.pop("steps", None)
    return [ParsedValue.of(name, value, str(path)) for name, value in (values | own).items()]

"""Conversion of a SmolVLA checkpoint between its two types: `smolvla`, LeRobot's own, and `smolvla_fast`, smolact's in LeRobot."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smolact import durable
from smolact.backbones.presets import PRESETS
from smolact.errors import ConfigError, did_you_mean
from smolact.files import read_json_object
from smolact.policies.configuration import (
    CONFIG_FILE,
    PLUGIN_TYPES,
    TRAIN_CONFIG,
    find_policy,
    read_config_file,
)
from smolact.policies.factory import get_config_class
from smolact.policies.sharing import CHECKPOINT_PATTERNS, files_of, renew_card
from smolact.processors.pipeline import PREPROCESSOR
from smolact.processors.step import PLUGIN_STEPS
from smolact.settings import OWN

_AGAIN = "Copy it again, or take another checkpoint."


def convert_checkpoint(
    checkpoint: str | Path, kind: str, output: Path, *, revision: str | None = None
) -> Path:
    """Write a copy of a checkpoint with `kind` as its policy type. Weights are hard-linked if the disk allows it.

    Args:
        checkpoint: a folder (also a run's, whose last checkpoint is taken) or a Hub id.
        kind: `smolvla_fast`, which LeRobot opens with our plugin, or `smolvla`, which it opens without.

    Raises:
        ConfigError: `output` exists, there is no such type, or the policy has settings that the type lacks.
        NotFoundError, HubError: the checkpoint can't be found or fetched.
        CheckpointError: its configuration is damaged.
        WriteError: the disk is full, or writing fails.
    """
    names = [*PLUGIN_TYPES.values(), *PLUGIN_TYPES]
    if kind not in names:
        raise ConfigError(f"--to={kind}: expected {' or '.join(names)}.{did_you_mean(kind, names)}")
    if output.exists():
        raise ConfigError(f"--output={output} exists already. Choose another folder, or remove it first.")
    folder = find_policy(checkpoint, patterns=(*CHECKPOINT_PATTERNS, "*.md"), revision=revision)
    raw = read_config_file(folder)
    if raw.get("type") not in PLUGIN_TYPES.values():
        raise ConfigError(
            f"{folder} is a '{raw.get('type')}' policy, which has one name: only {' and '.join(names)} are the same policy."
        )
    if kind not in PLUGIN_TYPES:
        _check_lerobot_settings(folder, raw)
    with durable.replacing_folder(output) as temporary:
        for source in files_of(folder):
            target = temporary / source.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            _link_or_copy(source, target)
        _set_type(temporary / CONFIG_FILE, kind)
        _set_type(temporary / TRAIN_CONFIG, kind, "policy")
        _rename_tokenizer_step(temporary / f"{PREPROCESSOR}.json", for_plugin=kind in PLUGIN_TYPES)
        renew_card(temporary)
    return output


def _check_lerobot_settings(folder: Path, raw: Mapping[str, Any]) -> None:
    fields = dataclasses.fields(get_config_class(str(raw["type"])))
    own = [
        item.name
        for item in fields
        if item.metadata.get(OWN) and raw.get(item.name, item.default) != item.default
    ]
    if own:
        raise ConfigError(
            f"{folder} uses {', '.join(own)}, which LeRobot's own '{raw['type']}' does not know: it would compute something else. "
            "Leave it as it is."
        )


def _link_or_copy(source: Path, target: Path) -> None:
    if source.suffix == ".safetensors":
        try:
            os.link(source.resolve(), target)
            return
        except OSError:  # another disk, or a file system without hard links
            pass
    shutil.copyfile(source, target)


def _set_type(path: Path, kind: str, section: str | None = None) -> None:
    """Set the policy's type in a file to `kind`, if the file exists."""
    if not path.is_file():
        return
    data = read_json_object(path, _AGAIN)
    policy = data if section is None else data.get(section)
    if isinstance(policy, dict):
        policy["type"] = kind
        durable.write_json(path, data)


def _rename_tokenizer_step(path: Path, *, for_plugin: bool) -> None:
    """Set the name of the tokenizer step: LeRobot's own opens folders and Hub ids, the plugin's presets too."""
    if not path.is_file():
        return
    data = read_json_object(path, _AGAIN)
    plugin_names = {own: plugins for plugins, own in PLUGIN_STEPS.items()}
    for step in data.get("steps", ()):
        name = PLUGIN_STEPS.get(step.get("registry_name"), step.get("registry_name"))
        is_preset = step.get("config", {}).get("tokenizer_name") in PRESETS
        step["registry_name"] = plugin_names.get(name, name) if for_plugin and is_preset else name
    durable.write_json(path, data)

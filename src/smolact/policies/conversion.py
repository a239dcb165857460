"""A SmolVLA checkpoint under its other name: `smolvla`, LeRobot's own, or `smolvla_fast`, smolact's in LeRobot."""

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
    """Write a checkpoint again with `kind` as its policy's type. Weights are not copied but linked, where the disk can.

    Args:
        checkpoint: a folder (also a run's, whose last checkpoint is taken) or a Hub id.
        kind: `smolvla_fast`, which LeRobot knows through our plugin, or `smolvla`, which it knows by itself.
        output: the new folder.
        revision: of the checkpoint on the Hub.

    Returns:
        `output`.

    Raises:
        ConfigError: `output` exists, there is no such type, or the policy has settings that the type does not know.
        NotFoundError, HubError: the checkpoint is not there.
        CheckpointError: its configuration is damaged.
        WriteError: the disk is full or refused.
    """
    names = [*PLUGIN_TYPES.values(), *PLUGIN_TYPES]
    if kind not in names:
        raise ConfigError(f"--to={kind}: expected {' or '.join(names)}.{did_you_mean(kind, names)}")
    if output.exists():
        raise ConfigError(f"--output={output} exists already. Choose another folder, or remove it first.")
    folder = find_policy(checkpoint, patterns=(*CHECKPOINT_PATTERNS, "*.md"), revision=revision)
    raw = read_config_file(folder)  # by our name, whichever it has
    if raw.get("type") not in PLUGIN_TYPES.values():
        raise ConfigError(
            f"{folder} is a '{raw.get('type')}' policy, which has one name: only {' and '.join(names)} are the same policy."
        )
    if kind not in PLUGIN_TYPES:
        _check_lerobot_knows(folder, raw)
    with durable.replacing_folder(output) as temporary:
        for source in files_of(folder):
            target = temporary / source.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            _put(source, target)
        _rename(temporary / CONFIG_FILE, kind)
        _rename(temporary / TRAIN_CONFIG, kind, "policy")
        _rename_tokenizer(temporary / f"{PREPROCESSOR}.json", for_plugin=kind in PLUGIN_TYPES)
        renew_card(temporary)
    return output


def _check_lerobot_knows(folder: Path, raw: Mapping[str, Any]) -> None:
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


def _put(source: Path, target: Path) -> None:
    if source.suffix == ".safetensors":
        try:
            os.link(source.resolve(), target)
            return
        except OSError:  # another disk, or one that has no links
            pass
    shutil.copyfile(source, target)


def _rename(path: Path, kind: str, section: str | None = None) -> None:
    """Write `kind` as the type of the policy in a file, if there is the file."""
    if not path.is_file():
        return
    whole = read_json_object(path, _AGAIN)
    policy = whole if section is None else whole.get(section)
    if isinstance(policy, dict):
        policy["type"] = kind
        durable.write_json(path, whole)


def _rename_tokenizer(path: Path, *, for_plugin: bool) -> None:
    """Name the step that opens the tokenizer: LeRobot's own knows folders and Hub ids, the plugin's presets too."""
    if not path.is_file():
        return
    whole = read_json_object(path, _AGAIN)
    ours = {own: plugins for plugins, own in PLUGIN_STEPS.items()}
    for step in whole.get("steps", ()):
        name = PLUGIN_STEPS.get(step.get("registry_name"), step.get("registry_name"))
        is_preset = step.get("config", {}).get("tokenizer_name") in PRESETS
        step["registry_name"] = ours.get(name, name) if for_plugin and is_preset else name
    durable.write_json(path, whole)

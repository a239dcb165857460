"""Merging of a checkpoint's adapters into a plain policy, which opens without peft and the base policy."""

from __future__ import annotations

import shutil
from pathlib import Path

from smolact import durable
from smolact.backbones.weights import INDEX_FILE, WEIGHTS_FILE
from smolact.cards import CARD
from smolact.errors import CheckpointError, ConfigError
from smolact.policies.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from smolact.policies.configuration import CONFIG_FILE, find_policy, read_config_file
from smolact.policies.factory import get_policy_class
from smolact.policies.sharing import CHECKPOINT_PATTERNS, files_of, renew_card

_REWRITTEN = (ADAPTER_CONFIG, ADAPTER_WEIGHTS, CONFIG_FILE, WEIGHTS_FILE, INDEX_FILE)


def merge_checkpoint(checkpoint: str | Path, output: Path, *, revision: str | None = None) -> Path:
    """Write a checkpoint's policy with its adapters merged into the weights, atomically.

    The checkpoint's other files are unchanged: processors, `train_config.json`, the VLM's configuration and tokenizer. The card
    is regenerated unless it was edited.

    Args:
        checkpoint: a folder (also a run's, whose last checkpoint is taken) or a Hub id.

    Raises:
        ConfigError: `output` exists.
        NotFoundError, HubError: the checkpoint or its base policy can't be found or fetched.
        CheckpointError: it has no adapters, or a file is damaged, or a merged weight would not be finite.
        MissingDependencyError: peft is not installed.
        WriteError: the disk is full, or writing fails.
    """
    if output.exists():
        raise ConfigError(f"--output={output} exists already. Choose another folder, or remove it first.")
    folder = find_policy(checkpoint, patterns=CHECKPOINT_PATTERNS, revision=revision)
    raw = read_config_file(folder)
    if not (folder / ADAPTER_CONFIG).is_file():
        raise CheckpointError(
            f"{folder} has no adapters (no {ADAPTER_CONFIG}): its policy is a plain one, and opens as it is."
        )
    policy = get_policy_class(str(raw.get("type"))).from_pretrained(folder).merge_adapters()
    with durable.replacing_folder(output) as temporary:
        for file in files_of(folder):
            is_copied = file.suffix in (".json", ".safetensors") or file.name == CARD
            if file.parent == folder and is_copied and file.name not in _REWRITTEN:
                shutil.copyfile(file, temporary / file.name)
        policy.save_pretrained(temporary)
        renew_card(temporary)
    return output

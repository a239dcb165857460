"""The published form of a policy: a fixed list of its files, a card, and no paths of this machine."""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

from smolact import durable
from smolact.backbones.presets import CONFIG_FILES, TOKENIZER_FILES, VLM_FOLDER
from smolact.cards import CARD, hub_id, is_unedited
from smolact.errors import CheckpointError, ConfigError, NotFoundError
from smolact.files import read_json_object
from smolact.openable import own_files
from smolact.policies.adapters import ADAPTER_CONFIG, read_adapter_config
from smolact.policies.card import PROVENANCE, model_card
from smolact.policies.configuration import CONFIG_FILE, TRAIN_CONFIG, find_policy, read_config_file
from smolact.policies.embodiment import EMBODIMENT
from smolact.policies.smolvla.configuration_smolvla import SmolVLAConfig
from smolact.settings import OWN
from smolact.uploads import Upload

CHECKPOINT_PATTERNS = (
    "*.json",
    "*.safetensors",
    *(f"{VLM_FOLDER}/{name}" for name in (*CONFIG_FILES, *TOKENIZER_FILES)),
)
"""The files from which a policy is loaded."""

_PUBLISHED = (
    *(
        CONFIG_FILE,
        EMBODIMENT,
        TRAIN_CONFIG,
        PROVENANCE,
        CARD,
        "LICENSE",
        "LICENSE.md",
        "LICENSE.txt",
        "NOTICE",
    ),
    *("model*.safetensors", "model*.safetensors.index.json", "adapter_*.safetensors", "adapter_*.json"),
    *("policy_*.safetensors", "policy_*.json", "robot_p*processor*.safetensors", "robot_p*processor.json"),
    *(f"{VLM_FOLDER}/{name}" for name in (*CONFIG_FILES, *TOKENIZER_FILES)),
    "fast_tokenizer/*.json",
)
"""Only these files are published; others in a policy's folder stay private."""
_OWNED = (
    "*.safetensors",
    "*.safetensors.index.json",
    "policy_*.json",
    "adapter_*.json",
    EMBODIMENT,
    PROVENANCE,
    TRAIN_CONFIG,
)
_SETTINGS = (
    CONFIG_FILE,
    TRAIN_CONFIG,
    PROVENANCE,
    ADAPTER_CONFIG,
    "policy_preprocessor.json",
    "policy_postprocessor.json",
    "robot_preprocessor.json",
    "robot_postprocessor.json",
    f"{VLM_FOLDER}/{CONFIG_FILE}",
)
"""smolact's own files that may contain paths of this machine."""
_PATH = re.compile(r"(?<![\w/.:~])(?:~?/|[A-Za-z]:[\\/])[^\s\"',;|<>\[\]{}()=]*[^\s\"',;|<>\[\]{}()=.:]")
_ROOT = re.compile(r"~?/|[A-Za-z]:[\\/]")
_AGAIN = "Save the policy again, or push another checkpoint."


def contents(
    checkpoint: str | Path,
    *,
    name: str | None = None,
    license: str | None = None,
    tags: Sequence[str] | None = None,
    evaluations: Sequence[Mapping[str, Any]] = (),
) -> Upload:
    """Collect the files of a checkpoint to publish. The card is regenerated from them unless it was edited.

    Args:
        checkpoint: its folder, or its run's, whose last checkpoint is taken.
        name: its id on the Hub, for the card.
        license: the Hub's name of a licence, such as apache-2.0; the configuration's when None.
        tags: further tags for the card.

    Raises:
        NotFoundError: there is no policy.
        ConfigError: its adapters' base policy is on this machine only, or a file holds a token.
        CheckpointError: a file is damaged.
    """
    folder = local_checkpoint(checkpoint)
    _check_adapters(folder)
    files: dict[str, Path | bytes] = {}
    omitted = []
    for path in files_of(folder):
        file = path.relative_to(folder).as_posix()
        if _is_published(file):
            files[file] = path
        else:
            omitted.append(file)
    notes = [f"left out: {', '.join(omitted)}"] if omitted else []
    changes: dict[str, Any] = {"license": license} if license else {}
    for file in [file for file in _SETTINGS if file in files]:
        text, paths = _without_paths(folder / file, changes | _tags(tags, file, folder))
        files[file] = text
        if paths:
            notes.append(
                f"{file}: of paths of this machine only the last part is published ({', '.join(paths)})"
            )
    own_card = (folder / CARD).read_bytes() if CARD in files else None
    if own_card is not None and not is_unedited(own_card.decode(errors="replace")):
        notes.append(f"{CARD} is yours, and published as it is")
        files[CARD] = own_card
    else:
        files[CARD] = _card(files, name, evaluations).encode()
    return Upload("model", files, _OWNED, notes=tuple(notes))


def files_of(folder: Path) -> list[Path]:
    """Return all files of a checkpoint, which may be copied or published.

    Raises:
        CheckpointError: one is a link out of the folder, or not a regular file.
    """
    try:
        return own_files(folder)
    except OSError as error:
        raise CheckpointError(f"{error.filename} can't be read ({error.strerror}). {_AGAIN}") from error


def card_of(folder: Path, *, name: str | None = None) -> str:
    """Return the card of the policy in `folder`, as it would be published."""
    return _card(
        {file: _without_paths(folder / file, {})[0] for file in _SETTINGS if (folder / file).is_file()}, name
    )


def renew_card(folder: Path) -> None:
    """Regenerate the card of a changed policy, if it has one that was not edited."""
    path = folder / CARD
    if path.is_file() and is_unedited(path.read_text(encoding="utf-8")):
        durable.write_text(path, card_of(folder))


def local_checkpoint(checkpoint: str | Path) -> Path:
    """Return the folder of a policy on this machine. A Hub id is refused, since that policy is published already.

    Raises:
        NotFoundError: there is none.
    """
    if not Path(checkpoint).is_dir():
        raise NotFoundError(
            f"'{checkpoint}' is no folder here. Push a checkpoint's folder, or its run's: outputs/train/RUN."
        )
    folder = find_policy(checkpoint)
    read_config_file(folder)
    return folder


def opens_in_lerobot(config: Mapping[str, Any]) -> bool:
    """Return whether LeRobot supports the policy of this `config.json`, with all its settings and its VLM, without a plugin."""
    own = [item.name for item in dataclasses.fields(SmolVLAConfig) if item.metadata.get(OWN)]
    supported = config.get("type") == SmolVLAConfig.type and not any(name in config for name in own)
    return supported and hub_id(config.get("vlm_model_name")) is not None


def read_evaluation(folder: Path, checkpoint: Path) -> dict[str, Any]:
    """Read the results of `smolact eval --output_dir=FOLDER` for the card of `checkpoint`.

    Raises:
        NotFoundError: there are none.
        ConfigError: they are of another policy.
        CheckpointError: a file is damaged.
    """
    path = folder / "metrics.json" if folder.is_dir() else folder
    if not path.is_file():
        raise NotFoundError(
            f"{folder} holds no evaluation: expected metrics.json, which `smolact eval --output_dir=FOLDER` writes."
        )
    result = read_json_object(path, "Evaluate again.")
    policy = result.get("policy")
    if policy and Path(policy).is_dir() and find_policy(policy).resolve() != checkpoint.resolve():
        raise ConfigError(
            f"{path} is an evaluation of {policy}, not of {checkpoint}. Give the one of this policy."
        )
    settings = path.with_name("evaluation.json")
    env = read_json_object(settings, "Evaluate again.").get("environment") if settings.is_file() else None
    needed = {"success_rate", "confidence_interval", "episodes"}
    if not result.keys() >= needed:
        raise ConfigError(f"{path} is no evaluation: it lacks {', '.join(sorted(needed - result.keys()))}.")
    return {"environment": env, **{key: value for key, value in result.items() if key != "results"}}


def _is_published(file: str) -> bool:
    depth = file.count("/")
    return any(fnmatch.fnmatchcase(file, pattern) and depth == pattern.count("/") for pattern in _PUBLISHED)


def adapter_base(folder: Path) -> Path:
    """Return the folder of the base policy of the adapters in `folder`.

    Raises:
        NotFoundError, HubError: the base can't be found or fetched.
        CheckpointError: the base holds adapters itself.
    """
    data, path = read_adapter_config(folder), folder / ADAPTER_CONFIG
    name = str(data["base_model_name_or_path"])
    try:
        base = find_policy(name, patterns=CHECKPOINT_PATTERNS, revision=data.get("revision"))
    except NotFoundError as error:
        raise NotFoundError(
            f"{folder} holds adapters of the policy '{name}', which is not there. Write its present folder or Hub id into "
            f"base_model_name_or_path of {path}. {error}"
        ) from error
    if (base / ADAPTER_CONFIG).is_file():
        raise CheckpointError(
            f"{path} names the base '{name}', which holds adapters itself. Merge those first: "
            "load it, policy.merge_adapters(), and save it."
        )
    return base


def _check_adapters(folder: Path) -> None:
    """Raise a `ConfigError` if the policy's adapters have a base policy that only this machine has."""
    path = folder / ADAPTER_CONFIG
    if not path.is_file():
        return
    base = str(read_json_object(path, _AGAIN).get("base_model_name_or_path"))
    if Path(base).is_absolute() or Path(base).exists():
        raise ConfigError(
            f"{path} holds adapters of the policy {base}, which is on this machine only: nobody else could open them. Push that "
            f"policy and write its id into base_model_name_or_path there, or push one that stands alone: smolact policy "
            f"merge-adapters --policy.path={folder} --output=FOLDER"
        )


def _tags(tags: Sequence[str] | None, file: str, folder: Path) -> dict[str, Any]:
    if not tags or file != CONFIG_FILE:
        return {}
    own = read_json_object(folder / file, _AGAIN).get("tags") or []
    return {"tags": list(dict.fromkeys([*own, *tags]))}


def _without_paths(path: Path, changes: Mapping[str, Any]) -> tuple[bytes, list[str]]:
    """Return a JSON file with `changes` to a policy's configuration and without paths of this machine, and the fields that had some."""
    content = read_json_object(path, _AGAIN)
    if path.name == CONFIG_FILE and path.parent.name != VLM_FOLDER:
        content |= changes
    fields: list[str] = []
    cut = _shorten_paths(content, "", fields)
    if cut == content and not changes:
        return path.read_bytes(), []
    return (json.dumps(cut, indent=4, ensure_ascii=False) + "\n").encode(), fields


def _shorten_paths(value: Any, name: str, fields: list[str]) -> Any:
    if isinstance(value, dict):
        return {key: _shorten_paths(item, f"{name}.{key}".lstrip("."), fields) for key, item in value.items()}
    if isinstance(value, list):
        return [_shorten_paths(item, name, fields) for item in value]
    if not isinstance(value, str):
        return value
    is_path = _ROOT.match(value) is not None  # the whole value, spaces too
    shorter = (
        PureWindowsPath(value).name
        if is_path
        else _PATH.sub(lambda path: PureWindowsPath(path.group()).name, value)
    )
    if shorter != value and name not in fields:
        fields.append(name)
    return shorter


def _card(
    files: Mapping[str, Path | bytes], name: str | None, evaluations: Sequence[Mapping[str, Any]] = ()
) -> str:
    """Return the card that follows from the published settings files."""
    raw, training, provenance = (
        json.loads(text) if isinstance(text := files.get(file), bytes) else {}
        for file in (CONFIG_FILE, TRAIN_CONFIG, PROVENANCE)
    )
    return model_card(
        raw, training, provenance, name=name, evaluations=evaluations, for_lerobot=opens_in_lerobot(raw)
    )

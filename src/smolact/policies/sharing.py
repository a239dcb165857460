"""What of a policy is published: its own files by name, a card, and no path of this machine."""

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
from smolact.cards import CARD, hub_id, is_as_written
from smolact.errors import CheckpointError, ConfigError, NotFoundError
from smolact.files import read_json_object
from smolact.openable import own_files
from smolact.policies.adapters import ADAPTER_CONFIG
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
"""Everything that a policy is loaded from."""

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
"""Nothing else, so that what somebody put beside a policy stays where it is."""
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
"""Files of ours in which a path of this machine may stand."""
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
    """What of a checkpoint is published, and under which names.

    The card is written anew from the checkpoint's files, unless somebody has worked on it.

    Args:
        checkpoint: its folder, or its run's, whose last checkpoint is taken.
        name: its id on the Hub, for the card.
        license: a licence by the Hub's name for it, such as apache-2.0; that of its configuration when None.
        tags: for the card, besides its own.
        evaluations: what was measured, as `read_evaluation` gives it.

    Raises:
        NotFoundError: there is no policy.
        ConfigError: its adapters belong to a policy of this machine, or a file holds a token.
        CheckpointError: a file is damaged.
    """
    folder = local_checkpoint(checkpoint)
    _check_adapters(folder)
    files: dict[str, Path | bytes] = {}
    left = []
    for path in files_of(folder):
        place = path.relative_to(folder).as_posix()
        if _is_published(place):
            files[place] = path
        else:
            left.append(place)
    notes = [f"left out: {', '.join(left)}"] if left else []
    changes: dict[str, Any] = {"license": license} if license else {}
    for place in [place for place in _SETTINGS if place in files]:
        text, paths = _without_paths(folder / place, changes | _tags(tags, place, folder))
        files[place] = text
        if paths:
            notes.append(
                f"{place}: of paths of this machine only the last part is published ({', '.join(paths)})"
            )
    own = (folder / CARD).read_bytes() if CARD in files else None
    if own is not None and not is_as_written(own.decode(errors="replace")):
        notes.append(f"{CARD} is yours, and published as it is")
        files[CARD] = own
    else:
        files[CARD] = _card(files, name, evaluations).encode()
    return Upload("model", files, _OWNED, notes=tuple(notes))


def files_of(folder: Path) -> list[Path]:
    """All files of a checkpoint, which may be copied or published.

    Raises:
        CheckpointError: one is a link out of the folder, or no regular file.
    """
    try:
        return own_files(folder)
    except OSError as error:
        raise CheckpointError(f"{error.filename} can't be read ({error.strerror}). {_AGAIN}") from error


def card_of(folder: Path, *, name: str | None = None) -> str:
    """The card of the policy in `folder`, as it would be published."""
    return _card(
        {place: _without_paths(folder / place, {})[0] for place in _SETTINGS if (folder / place).is_file()},
        name,
    )


def renew_card(folder: Path) -> None:
    """Write the card of a policy that has changed anew, if it has one, and nobody has worked on it."""
    path = folder / CARD
    if path.is_file() and is_as_written(path.read_text(encoding="utf-8")):
        durable.write_text(path, card_of(folder))


def local_checkpoint(checkpoint: str | Path) -> Path:
    """The folder of a policy on this machine; a folder is published, not what is on the Hub already.

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
    """Whether LeRobot knows the policy of this `config.json`, all its settings and its VLM, without a plugin."""
    own = [item.name for item in dataclasses.fields(SmolVLAConfig) if item.metadata.get(OWN)]
    known = config.get("type") == SmolVLAConfig.type and not any(name in config for name in own)
    return known and hub_id(config.get("vlm_model_name")) is not None


def read_evaluation(folder: Path, checkpoint: Path) -> dict[str, Any]:
    """What `smolact eval --output_dir=FOLDER` found about `checkpoint`, for its card.

    Raises:
        NotFoundError: there is none.
        ConfigError: it is of another policy.
        CheckpointError: a file is damaged.
    """
    path = folder / "metrics.json" if folder.is_dir() else folder
    if not path.is_file():
        raise NotFoundError(
            f"{folder} holds no evaluation: expected metrics.json, which `smolact eval --output_dir=FOLDER` writes."
        )
    found = read_json_object(path, "Evaluate again.")
    of = found.get("policy")
    if of and Path(of).is_dir() and find_policy(of).resolve() != checkpoint.resolve():
        raise ConfigError(
            f"{path} is an evaluation of {of}, not of {checkpoint}. Give the one of this policy."
        )
    settings = path.with_name("evaluation.json")
    where = read_json_object(settings, "Evaluate again.").get("environment") if settings.is_file() else None
    wanted = {"success_rate", "confidence_interval", "episodes"}
    if not found.keys() >= wanted:
        raise ConfigError(f"{path} is no evaluation: it lacks {', '.join(sorted(wanted - found.keys()))}.")
    return {"environment": where, **{key: value for key, value in found.items() if key != "results"}}


def _is_published(place: str) -> bool:
    depth = place.count("/")
    return any(fnmatch.fnmatchcase(place, one) and depth == one.count("/") for one in _PUBLISHED)


def _check_adapters(folder: Path) -> None:
    """Adapters are nothing without the policy below them, which must be where everybody finds it."""
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


def _tags(tags: Sequence[str] | None, place: str, folder: Path) -> dict[str, Any]:
    if not tags or place != CONFIG_FILE:
        return {}
    own = read_json_object(folder / place, _AGAIN).get("tags") or []
    return {"tags": list(dict.fromkeys([*own, *tags]))}


def _without_paths(path: Path, changes: Mapping[str, Any]) -> tuple[bytes, list[str]]:
    """A JSON file with `changes` to a policy's configuration and the paths of this machine cut; and where some stood."""
    content = read_json_object(path, _AGAIN)
    if path.name == CONFIG_FILE and path.parent.name != VLM_FOLDER:
        content |= changes
    found: list[str] = []
    cut = _cut(content, "", found)
    if cut == content and not changes:
        return path.read_bytes(), []
    return (json.dumps(cut, indent=4, ensure_ascii=False) + "\n").encode(), found


def _cut(value: Any, name: str, found: list[str]) -> Any:
    if isinstance(value, dict):
        return {key: _cut(item, f"{name}.{key}".lstrip("."), found) for key, item in value.items()}
    if isinstance(value, list):
        return [_cut(item, name, found) for item in value]
    if not isinstance(value, str):
        return value
    is_path = _ROOT.match(value) is not None  # all of it, blanks too
    shorter = (
        PureWindowsPath(value).name
        if is_path
        else _PATH.sub(lambda path: PureWindowsPath(path.group()).name, value)
    )
    if shorter != value and name not in found:
        found.append(name)
    return shorter


def _card(
    files: Mapping[str, Path | bytes], name: str | None, evaluations: Sequence[Mapping[str, Any]] = ()
) -> str:
    """The card that follows from the files of settings, as they are published."""
    raw, training, provenance = (
        json.loads(text) if isinstance(text := files.get(place), bytes) else {}
        for place in (CONFIG_FILE, TRAIN_CONFIG, PROVENANCE)
    )
    return model_card(
        raw, training, provenance, name=name, evaluations=evaluations, for_lerobot=opens_in_lerobot(raw)
    )

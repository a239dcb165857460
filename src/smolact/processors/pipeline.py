"""Pipelines of steps, and their files in a checkpoint, which have LeRobot's format.

    policy_preprocessor.json                                          {name, steps: [{registry_name, config, state_file?}]}
    policy_preprocessor_step_5_normalizer_processor.safetensors       the tensors of step 5

No code in a file is run: a step is looked up by its registered name, and a step that a file gives as a Python path
(`class`) is refused.
"""

from __future__ import annotations

import inspect
import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, overload

import safetensors.torch
from torch import Tensor

import smolact.processors.normalize
import smolact.processors.steps
import smolact.processors.tokenizer  # noqa: F401  # these three register their steps
from smolact import durable
from smolact.errors import (
    CheckpointError,
    ConfigError,
    NotFoundError,
    SmolactError,
    did_you_mean,
    list_siblings,
)
from smolact.files import read_json_object, read_tensors
from smolact.processors.step import ProcessorStep, find_step, own_name
from smolact.types import ACTION

log = logging.getLogger(__name__)

PREPROCESSOR = "policy_preprocessor"
POSTPROCESSOR = "policy_postprocessor"
_FILES = (
    (f"{PREPROCESSOR}.json", f"{POSTPROCESSOR}.json"),
    ("robot_preprocessor.json", "robot_postprocessor.json"),
)
"""The names of a checkpoint's two files; the second pair is LeRobot's of August 2025."""

_AGAIN = "Copy or download the checkpoint again."


class ProcessorPipeline:
    """A sequence of steps. It maps a mapping to a new one, and a tensor (an action, for the postprocessor) to a tensor.

    Args:
        steps: in their order, which is part of the format.
        name: the pipeline's name, which its files have, too.
    """

    def __init__(self, steps: Sequence[ProcessorStep], name: str) -> None:
        self.steps = tuple(steps)
        self.name = name
        self._filename = re.sub(r"[^a-z0-9_]", "_", name.lower()) + ".json"  # LeRobot's rule
        self._unknown_fields: dict[str, Any] = {}

    @overload
    def __call__(self, data: Tensor) -> Tensor: ...

    @overload
    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]: ...

    def __call__(self, data: Mapping[str, Any] | Tensor) -> dict[str, Any] | Tensor:
        """Return `data` after every step."""
        batch = {ACTION: data} if isinstance(data, Tensor) else dict(data)
        for step in self.steps:
            batch = step(batch)
        if isinstance(data, Tensor):
            action: Tensor = batch[ACTION]
            return action
        return batch

    def __repr__(self) -> str:
        return f"ProcessorPipeline({self.name!r}: {' → '.join(step.registry_name for step in self.steps)})"

    def save_pretrained(self, folder: str | Path, config_filename: str | None = None) -> None:
        """Write the pipeline into `folder`: the tensors first, the JSON that names them last.

        Args:
            config_filename: when None, the one that it was read from, or its name.

        Raises:
            WriteError: the disk is full, or writing fails.
        """
        folder = Path(folder)
        config_filename = config_filename or self._filename
        entries = []
        for index, step in enumerate(self.steps):
            entry = {
                "registry_name": step.registry_name,
                "config": {**step.get_config(), **step.unknown_config},
            }
            state = step.state_dict()
            if state:
                state_file = f"{PurePath(config_filename).stem}_step_{index}_{step.registry_name}.safetensors"
                entry["state_file"] = state_file
                durable.write_bytes(folder / state_file, safetensors.torch.save(state))
            entries.append(entry)
        config = {"name": self.name, "steps": entries, **self._unknown_fields}
        durable.write_text(folder / config_filename, json.dumps(config, indent=2, allow_nan=False))

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        config_filename: str,
        overrides: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> ProcessorPipeline:
        """Load a pipeline from `folder`.

        Args:
            config_filename: such as `policy_preprocessor.json`.
            overrides: constructor arguments by step name that replace those in the file, such as
                `{"device_processor": {"device": "cuda"}, "normalizer_processor": {"stats": statistics}}`.

        Raises:
            NotFoundError: there is no such folder.
            CheckpointError: a file is missing or damaged, or names a step that is not registered.
            ConfigError: an override fits no step.
            DeviceError, StatisticsError, …: from the steps.
        """
        path = Path(folder) / config_filename
        overrides = overrides or {}
        config = _read_config(path)
        entries = config.pop("steps")
        classes = [_find_class(path, index, entry) for index, entry in enumerate(entries)]
        _check_overrides(path, classes, overrides)
        steps = [
            _load_step(path, index, entry, step_class, overrides.get(step_class.registry_name, {}))
            for index, (entry, step_class) in enumerate(zip(entries, classes, strict=True))
        ]
        pipeline = cls(steps, config.pop("name"))
        pipeline._filename, pipeline._unknown_fields = path.name, config
        return pipeline


def processor_files(folder: Path) -> tuple[str, str] | None:
    """Return the names of a checkpoint's two processor files; None if it has neither, as older checkpoints."""
    return next((names for names in _FILES if any((folder / name).is_file() for name in names)), None)


def rename_map_of(preprocess: Any) -> dict[str, str]:
    """Return a preprocessor's map of a robot's, dataset's or environment's names; empty if it renames nothing."""
    rename_map: dict[str, str] = {}
    for step in getattr(preprocess, "steps", ()):
        rename_map |= getattr(step, "rename_map", {})
    return rename_map


def rename_map_in(folder: Path) -> dict[str, str]:
    """Return the rename map of a checkpoint's preprocessor, which is not constructed.

    Raises:
        CheckpointError: the file is damaged.
    """
    files = processor_files(folder)
    entries = [] if files is None else _read_config(folder / files[0])["steps"]
    rename_map: dict[str, str] = {}
    for entry in entries:
        names = entry.get("config", {}).get("rename_map") if isinstance(entry.get("config"), dict) else None
        if isinstance(names, dict):
            rename_map |= {str(old): str(new) for old, new in names.items()}
    return rename_map


def step_names(path: Path) -> list[str]:
    """Return the registered names of a file's steps.

    Raises:
        NotFoundError, CheckpointError: the file does not exist, or is damaged.
    """
    names = (str(entry.get("registry_name")) for entry in _read_config(path)["steps"])
    return [own_name(name) for name in names]


def _read_config(path: Path) -> dict[str, Any]:
    if not path.parent.is_dir():
        raise NotFoundError(
            f"The folder {path.parent} does not exist. {list_siblings(path.parent.absolute())}"
        )
    older = "(Older checkpoints have no processor files: load the policy, which finds the statistics among its weights.)"
    config = read_json_object(path, _AGAIN, if_missing=f"{_AGAIN} {older}")
    entries = config.get("steps")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise CheckpointError(
            f"{path} is not a processor's configuration: expected {{name, steps: […]}}. {_AGAIN}"
        )
    name = config.setdefault("name", path.stem)
    if not isinstance(name, str):
        raise CheckpointError(f"{path}: the name is {name!r}, expected a text. {_AGAIN}")
    return config


def _find_class(path: Path, index: int, entry: Mapping[str, Any]) -> type[ProcessorStep]:
    name = entry.get("registry_name")
    if not isinstance(name, str):
        description = (
            f"a Python path ({entry['class']!r}), and nothing in a checkpoint is run"
            if "class" in entry
            else "no name"
        )
        raise CheckpointError(
            f"{path}: step {index} has {description}: expected a `registry_name`. If you trust the step, register its "
            "class with @register_step (smolact.processors.step) and put that name in the file."
        )
    try:
        return find_step(name)
    except CheckpointError as error:
        raise CheckpointError(f"{path}, step {index}: {error}") from error


def _check_overrides(
    path: Path, classes: Sequence[type[ProcessorStep]], overrides: Mapping[str, Mapping[str, Any]]
) -> None:
    by_name = {step_class.registry_name: step_class for step_class in classes}
    for name, override in overrides.items():
        if name not in by_name:
            raise ConfigError(
                f"{path} has no step '{name}' to override.{did_you_mean(name, by_name)} "
                f"Its steps: {', '.join(by_name)}."
            )
        known = _fields(by_name[name])
        for field in override:
            if field not in known:
                raise ConfigError(
                    f"The step '{name}' has no field '{field}' to override.{did_you_mean(field, known)} "
                    f"Its fields: {', '.join(known)}."
                )


def _fields(step_class: type[ProcessorStep]) -> tuple[str, ...]:
    return tuple(inspect.signature(step_class).parameters)


def _load_step(
    path: Path,
    index: int,
    entry: Mapping[str, Any],
    step_class: type[ProcessorStep],
    override: Mapping[str, Any],
) -> ProcessorStep:
    config, name = entry.get("config", {}), step_class.registry_name
    try:
        if not isinstance(config, dict):
            raise CheckpointError(f"Its config is {config!r:.100}, expected an object. {_AGAIN}")
        step = _make_step(step_class, {**config, **_artifacts(path, entry)}, override)
        state_file = entry.get("state_file")
        step.load_state_dict({} if state_file is None else read_tensors(_sibling(path, state_file), _AGAIN))
    except (CheckpointError, ConfigError) as error:
        raise CheckpointError(f"{path}, step {index} ({name}): {error}") from error
    if step.unknown_config:
        log.warning(
            "%s: the step '%s' has fields that this version does not know; they are kept, and have no effect: %s",
            path,
            name,
            ", ".join(step.unknown_config),
        )
    return step


def _make_step(
    step_class: type[ProcessorStep], config: dict[str, Any], override: Mapping[str, Any]
) -> ProcessorStep:
    known = _fields(step_class)
    arguments = {field: value for field, value in config.items() if field in known} | dict(override)
    try:
        step = step_class(**arguments)
    except SmolactError:
        raise
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(f"It can't be made from its config ({error}). {_AGAIN}") from error
    step.unknown_config = {field: value for field, value in config.items() if field not in known}
    return step


def _artifacts(path: Path, entry: Mapping[str, Any]) -> dict[str, str]:
    # LeRobot after 0.6.1 may keep a tokenizer in the checkpoint: {"artifacts": {"tokenizer_name": "tokenizer"}}.
    artifacts = entry.get("artifacts", {})
    if not isinstance(artifacts, dict):
        raise CheckpointError(f"Its artifacts are {artifacts!r:.100}, expected an object. {_AGAIN}")
    return {field: str(_sibling(path, name)) for field, name in artifacts.items()}


def _sibling(path: Path, name: Any) -> Path:
    """Return the path of `name` in the folder of `path`; a name that leads elsewhere is refused."""
    if not isinstance(name, str) or name in ("", ".", "..") or set(name) & set("/\\:\0"):
        raise CheckpointError(
            f"It points at {name!r:.100}: expected the name of a file in the same folder. {_AGAIN}"
        )
    return path.parent / name

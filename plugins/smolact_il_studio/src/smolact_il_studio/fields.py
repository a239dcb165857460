"""The policy settings that have an effect in IL-Studio, and the other names that a policy's YAML may have. Imports no torch."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from smolact.errors import ConfigError, did_you_mean
from smolact.policies.configuration import PolicyConfig

OWN = {
    "action_dim": (14, "values of an action; the task says it"),
    "state_dim": (14, "values of a state; the task says it"),
    "camera_names": ((), "the cameras, in the samples' order; the first batch numbers them when empty"),
    "load_vlm_weights": (True, "begin from the VLM's weights; false begins with random ones"),
    "engine": (
        "float32",
        "what predicts: float32 or bfloat16 (the engine), or off (the network that trains)",
    ),
}
"""The additional settings of IL-Studio's configurations: defaults and descriptions."""
ENGINES = ("float32", "bfloat16", "off")
THE_TASKS = ("action_dim", "state_dim", "camera_names")
"""The settings that a task defines, not a policy's YAML."""

_UNUSED = {item.name for item in dataclasses.fields(PolicyConfig)} - {
    "n_obs_steps",
    "chunk_size",
    "n_action_steps",
} | {
    *(
        "normalization_mapping",
        "rtc_config",
        "checkpoint_path",
        "relaxed_action_decoding",
        "drop_n_last_frames",
    ),
    *("use_delta_joint_actions_aloha", "grad_clip_norm"),
}
_IL_STUDIO_NAMES = {
    *(
        "action_normalize",
        "state_normalize",
        "model_type",
        "history_len",
        "prediction_len",
        "image_size",
        "image_sizes",
    ),
    *("model_name_or_path", "is_pretrained", "use_reasoning", "use_prev_subtask"),
}
"""The names that IL-Studio reads from a policy's YAML, or that its own YAMLs contain unused."""
_SECTIONS = {
    *(
        "name",
        "module_path",
        "config_class",
        "model_class",
        "data_processor",
        "data_collator",
        "trainer_class",
    ),
    *("pretrained_config", "config_params"),
}


def setting_names(settings_class: type[PolicyConfig]) -> list[str]:
    """Return the settings that IL-Studio can set, without features and normalization, which it defines, and the optimizer's."""
    return [item.name for item in dataclasses.fields(settings_class) if _has_effect(item.name)]


def _has_effect(name: str) -> bool:
    optimizing = name.startswith(("optimizer_", "scheduler_")) or name.endswith("_optimizer_lr")
    return name not in _UNUSED and not optimizing


def check_known(names: Iterable[str], settings_class: type[PolicyConfig], where: str) -> None:
    """Raise a `ConfigError` unless every name is a setting of the policy or read by IL-Studio.

    Raises:
        ConfigError: one is neither; the message suggests the nearest name.
    """
    known = {*OWN, *_IL_STUDIO_NAMES, *(item.name for item in dataclasses.fields(settings_class))}
    for name in names:
        setting = name.removeprefix("model_args.")
        if setting not in known and setting.partition(".")[0] not in _SECTIONS:
            raise ConfigError(
                f"{where}: '{setting}' is no setting of a '{settings_class.type}' policy.{did_you_mean(setting, known)}"
            )


def check_spelling(names: Iterable[str], settings_class: type[PolicyConfig]) -> None:
    """Raise a `ConfigError` if a name is nearly a setting's; other unknown names are allowed.

    Raises:
        ConfigError: a name is misspelt.
    """
    known = [*OWN, *(item.name for item in dataclasses.fields(settings_class))]
    for name in names:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.85)
        if near and name not in known and name not in _IL_STUDIO_NAMES:
            raise ConfigError(
                f"'{name}' is no setting of a '{settings_class.type}' policy. Did you mean '{near[0]}'?"
            )


def settings_from(args: Any, settings_class: type[PolicyConfig]) -> dict[str, Any]:
    """Return the policy's settings in IL-Studio's merged `args`; its `model_args` are the YAML's alone.

    Raises:
        ConfigError: the YAML or the command line has an unknown setting.
    """
    model_args: Mapping[str, Any] = getattr(args, "model_args", None) or {}
    check_known(model_args, settings_class, "model_args of the policy's YAML")
    check_known(command_line_settings(args), settings_class, "--policy.…")
    names = [*setting_names(settings_class), *OWN]
    merged = {name: getattr(args, name) for name in names if hasattr(args, name)}
    return {**{name: value for name, value in model_args.items() if name in names}, **merged}


def command_line_settings(args: Any) -> dict[str, Any]:
    """Return the `--policy.…` values of IL-Studio's command line."""
    overrides: Mapping[str, Any] = getattr(args, "config_overrides", None) or {}
    return dict(overrides.get("policy") or {})

"""Which settings of a policy mean something in IL-Studio, and what else a policy's YAML may say there. No torch here."""

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
"""Settings that IL-Studio's configurations have besides the policy's: their defaults, and what they mean."""
ENGINES = ("float32", "bfloat16", "off")
THE_TASKS = ("action_dim", "state_dim", "camera_names")
"""Those that a task decides, not a policy's YAML."""

_ELSEWHERE = {item.name for item in dataclasses.fields(PolicyConfig)} - {"n_obs_steps"} | {
    *(
        "normalization_mapping",
        "rtc_config",
        "checkpoint_path",
        "relaxed_action_decoding",
        "drop_n_last_frames",
    ),
    *("use_delta_joint_actions_aloha", "grad_clip_norm"),
}
_PASSED = {
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
"""What IL-Studio itself reads of a policy's YAML, or its own YAML says without reading it."""
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
    """The settings that IL-Studio can set: neither features and normalization, which are its own, nor the optimizer's."""
    return [item.name for item in dataclasses.fields(settings_class) if _has_effect(item.name)]


def _has_effect(name: str) -> bool:
    optimizing = name.startswith(("optimizer_", "scheduler_")) or name.endswith("_optimizer_lr")
    return name not in _ELSEWHERE and not optimizing


def refuse_unknown(given: Iterable[str], settings_class: type[PolicyConfig], where: str) -> None:
    """Refuse names that are no setting of the policy, and nothing that IL-Studio reads.

    Raises:
        ConfigError: one is neither; the nearest is named.
    """
    known = {*OWN, *_PASSED, *(item.name for item in dataclasses.fields(settings_class))}
    for name in given:
        bare = name.removeprefix("model_args.")
        if bare not in known and bare.partition(".")[0] not in _SECTIONS:
            raise ConfigError(
                f"{where}: '{bare}' is no setting of a '{settings_class.type}' policy.{did_you_mean(bare, known)}"
            )


def refuse_misspelt(given: Iterable[str], settings_class: type[PolicyConfig]) -> None:
    """Refuse names that are almost a setting's; others may be somebody else's.

    Raises:
        ConfigError: one is.
    """
    known = [*OWN, *(item.name for item in dataclasses.fields(settings_class))]
    for name in given:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.85)
        if near and name not in known and name not in _PASSED:
            raise ConfigError(
                f"'{name}' is no setting of a '{settings_class.type}' policy. Did you mean '{near[0]}'?"
            )


def settings_from(args: Any, settings_class: type[PolicyConfig]) -> dict[str, Any]:
    """The policy's settings among what IL-Studio has merged into `args`; `model_args` are those of the YAML alone.

    Raises:
        ConfigError: the YAML or the command line names a setting that does not exist.
    """
    model_args: Mapping[str, Any] = getattr(args, "model_args", None) or {}
    refuse_unknown(model_args, settings_class, "model_args of the policy's YAML")
    refuse_unknown(typed_by_hand(args), settings_class, "--policy.…")
    names = [*setting_names(settings_class), *OWN]
    merged = {name: getattr(args, name) for name in names if hasattr(args, name)}
    return {**{name: value for name, value in model_args.items() if name in names}, **merged}


def typed_by_hand(args: Any) -> dict[str, Any]:
    """What was set on IL-Studio's command line with `--policy.…`."""
    overrides: Mapping[str, Any] = getattr(args, "config_overrides", None) or {}
    return dict(overrides.get("policy") or {})

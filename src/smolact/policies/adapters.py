"""Low-rank adapters (LoRA) in a policy's linear layers, with the library peft and in the file format of peft and LeRobot.

A linear layer W x becomes W x + (alpha / r) B A x, with A (r, in) and B (out, r), in place, so that the policy keeps its class.
Only A and B are trained and saved, with the base policy's name. `merge_adapters` adds B A to W and restores plain layers.

Source: Hu et al. 2021, "LoRA", arXiv 2106.09685.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from smolact import durable
from smolact.backbones.weights import read_tensors
from smolact.errors import CheckpointError, ConfigError, WeightsError, did_you_mean, optional_import
from smolact.files import read_json_object

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
"""The prefix of all names in peft's wrapper, which LeRobot saves."""
ALL_LINEAR = "all-linear"
INITIALIZATIONS = ("gaussian", "orthogonal")
"""peft's initializations that leave the base's weights unchanged. The others (pissa, olora, …) would need a base of their own."""


@dataclass(frozen=True)
class AdapterSettings:
    """The settings of new adapters, checked on construction.

    Raises:
        ConfigError: a rank, scale or initialization is invalid.
    """

    target_modules: str | Sequence[str] | None = None
    """Linear layers: suffixes of their names, a regular expression for full names, or `all-linear`; the policy's default if None."""
    full_training_modules: Sequence[str] = ()
    """Name suffixes of modules that are trained in full and saved with the adapters, even if otherwise frozen."""
    init_type: str | None = None
    """`gaussian` or `orthogonal`; None draws A at random and sets B to zero, so that training starts from the base."""
    r: int = 16
    lora_alpha: int | None = None
    """The adapters are scaled by lora_alpha / r; None means 8, as in peft."""

    def __post_init__(self) -> None:
        for name, value in (("r", self.r), ("lora_alpha", self.lora_alpha)):
            if value is not None and value < 1:
                raise ConfigError(f"--peft.{name}={value} is too small: it must be 1 or more.")
        if self.init_type not in (None, *INITIALIZATIONS):
            raise ConfigError(
                f"--peft.init_type={self.init_type} can't be used: expected {' or '.join(INITIALIZATIONS)}, or nothing for "
                "LoRA's own. Initializations that change the base's weights are not supported, since only adapters are saved."
            )
        if self.init_type == "orthogonal" and self.r % 2:
            raise ConfigError(f"--peft.r={self.r}: --peft.init_type=orthogonal needs an even rank.")


@dataclass(frozen=True)
class Adapters:
    """A policy's adapters, as needed to save, load and merge them."""

    config: Any
    """peft's LoraConfig."""
    full: tuple[str, ...]
    """Names of the modules that are trained in full."""
    trained: frozenset[str]
    """Names of the parameters that the policy's settings train, without regard to the adapters."""

    @property
    def base(self) -> str:
        """The base policy: a folder or a Hub id."""
        return str(self.config.base_model_name_or_path)


def add_adapters(
    policy: nn.Module, settings: AdapterSettings, base: str, revision: str | None = None
) -> Adapters:
    """Add new adapters to `policy`. From then on, only they and `full_training_modules` are trained.

    Args:
        policy: changed in place; the global random generator draws A.
        settings: must have `target_modules`.
        base: the source of the policy's present weights: a folder or a Hub id.

    Raises:
        ConfigError: a name matches no module, or one that is not a linear layer.
        MissingDependencyError: peft is not installed.
    """
    peft = optional_import("peft", "peft")
    full = _matching_modules(policy, settings.full_training_modules, "full_training_modules")
    targets = settings.target_modules or ()
    if targets == ALL_LINEAR:
        # The output layer over words is tied to the embedding, and no action depends on it.
        targets = [
            name
            for name, module in policy.named_modules()
            if isinstance(module, nn.Linear) and not name.endswith("lm_head")
        ]
    config = peft.LoraConfig(
        r=settings.r,
        lora_alpha=8 if settings.lora_alpha is None else settings.lora_alpha,
        target_modules=targets if isinstance(targets, str) else list(targets),
        init_lora_weights=True if settings.init_type is None else settings.init_type,
        base_model_name_or_path=base,
        revision=revision,
    )
    return _inject(policy, config, full)


def load_adapters(policy: nn.Module, folder: Path) -> Adapters:
    """Add the adapters in `folder` to `policy`, which has the base's weights. They can be trained further.

    Raises:
        CheckpointError: a file is damaged, or of another method than LoRA.
        WeightsError: the adapters do not fit this policy.
        MissingDependencyError: peft is not installed.
    """
    peft = optional_import("peft", "peft")
    path = folder / ADAPTER_CONFIG
    data = read_adapter_config(folder)
    known = {item.name for item in dataclasses.fields(peft.LoraConfig)}
    try:
        config = peft.LoraConfig(**{name: value for name, value in data.items() if name in known})
        config.inference_mode = False
        full = _matching_modules(policy, config.modules_to_save or (), "full_training_modules")
        adapters = _inject(policy, config, full)
    except (ConfigError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} does not fit this policy: {error}") from error
    weights = folder / ADAPTER_WEIGHTS
    loaded = {name.removeprefix(PREFIX): tensor for name, tensor in read_tensors([weights]).items()}
    expected = _tensors(policy, adapters)
    mismatched = sorted(
        name
        for name in expected.keys() | loaded
        if name not in expected or name not in loaded or expected[name].shape != loaded[name].shape
    )
    if mismatched:
        raise WeightsError(
            f"{weights} does not fit {path} and the base policy {adapters.base}: {len(mismatched)} of {len(expected)} weights are "
            f"missing, left over or of another shape, '{mismatched[0]}' first. Copy the adapters again, or name the right base in "
            "base_model_name_or_path."
        )
    with torch.no_grad():
        for name, tensor in expected.items():
            tensor.copy_(loaded[name])
    return adapters


def save_adapters(policy: nn.Module, adapters: Adapters, folder: Path) -> None:
    """Write `adapter_model.safetensors` and `adapter_config.json` into `folder`."""
    data = adapters.config.to_dict() | {
        "modules_to_save": list(adapters.full) or None,
        "inference_mode": True,
    }
    data = {
        name: sorted(value) if isinstance(value, (set, frozenset)) else value for name, value in data.items()
    }
    durable.write_json(folder / ADAPTER_CONFIG, data)
    tensors = {PREFIX + name: tensor.contiguous() for name, tensor in _tensors(policy, adapters).items()}
    with durable.replacing_file(folder / ADAPTER_WEIGHTS) as temporary:
        durable.save_tensors(temporary, tensors, metadata={"format": "pt"})


def merge_adapters(policy: nn.Module, adapters: Adapters) -> None:
    """Add the adapters to the base's weights, and restore plain linear layers and the parameters that the policy's settings train.

    Raises:
        CheckpointError: a merged weight would not be finite.
    """
    for name in _adapted_layers(policy):
        layer: Any = policy.get_submodule(name)
        try:
            layer.merge(safe_merge=True)
        except ValueError as error:
            raise CheckpointError(f"The adapter of '{name}' holds NaN or infinity: {error}") from error
        owner, _, attribute = name.rpartition(".")
        setattr(policy.get_submodule(owner), attribute, layer.get_base_layer())
    for attribute in ("peft_config", "_hf_peft_config_loaded"):
        if attribute in vars(policy):
            delattr(policy, attribute)
    for name, parameter in policy.named_parameters():
        parameter.requires_grad_(name in adapters.trained)


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """Read `folder/adapter_config.json`.

    Raises:
        CheckpointError: it is damaged, of another method than LoRA, or names no base policy.
    """
    path = folder / ADAPTER_CONFIG
    data = read_json_object(path, "Copy it again.")
    if data.get("peft_type") != "LORA":
        raise CheckpointError(f"{path} is of {data.get('peft_type')}, expected the peft_type LORA.")
    init = data.get("init_lora_weights", True)
    if not isinstance(init, bool) and init not in INITIALIZATIONS:
        raise CheckpointError(
            f"{path}: init_lora_weights={init!r} has changed the base's weights. Save the adapters again with "
            "peft's path_initial_model_for_weight_conversion."
        )
    if not data.get("base_model_name_or_path"):
        raise CheckpointError(
            f"{path} does not say which policy its adapters belong to. Write its folder or Hub id into "
            "base_model_name_or_path."
        )
    return data


def _inject(policy: nn.Module, config: Any, full: Sequence[str]) -> Adapters:
    """Replace the layers that `config` targets with peft's. The modules in `full` are trained in full, without adapters."""
    peft = optional_import("peft", "peft")
    prefixes = tuple(name + "." for name in full)
    targets = _matching_modules(policy, config.target_modules, "target_modules")
    excluded = [name for name in targets if name in full or name.startswith(prefixes)]
    for name in set(targets) - set(excluded):
        if not isinstance(policy.get_submodule(name), nn.Linear):
            raise ConfigError(
                f"--peft.target_modules={_format_targets(config.target_modules)} takes '{name}', which is a "
                f"{type(policy.get_submodule(name)).__name__}: adapters go into linear layers only. Name those, such as "
                "q_proj or .*lm_expert.*_proj."
            )
    if len(excluded) == len(targets):
        raise ConfigError(
            f"--peft.target_modules={_format_targets(config.target_modules)}: all of it is in --peft.full_training_modules. Name "
            "further layers, or train without --peft."
        )
    trained = frozenset(name for name, parameter in policy.named_parameters() if parameter.requires_grad)
    # peft would train copies of these modules; here they are trained in place, so peft must exclude them.
    config.exclude_modules, config.modules_to_save = excluded or None, None
    peft.inject_adapter_in_model(config, policy)
    for name in full:
        policy.get_submodule(name).requires_grad_(True)
    return Adapters(config, tuple(full), trained)


def _adapted_layers(policy: nn.Module) -> list[str]:
    layer = optional_import("peft.tuners.lora", "peft").LoraLayer
    return [name for name, module in policy.named_modules() if isinstance(module, layer)]


def _tensors(policy: nn.Module, adapters: Adapters) -> dict[str, Tensor]:
    """Return the tensors that are saved, under peft's names. They are the policy's own tensors, not copies."""
    peft = optional_import("peft", "peft")
    tensors: dict[str, Tensor] = dict(peft.get_peft_model_state_dict(policy, save_embedding_layers=False))
    for name in adapters.full:
        state = policy.get_submodule(name).state_dict()
        tensors |= {f"{name}.{key}": tensor for key, tensor in state.items()}
    return tensors


def _matching_modules(policy: nn.Module, wanted: str | Iterable[str], flag: str) -> list[str]:
    """Return the names of the modules that peft selects for `wanted`: a regular expression for full names, or name suffixes."""
    names = [name for name, _ in policy.named_modules() if name]
    if isinstance(wanted, str):
        try:
            matches = [name for name in names if re.fullmatch(wanted, name)]
        except re.error as error:
            raise ConfigError(f"--peft.{flag}={wanted} is not a regular expression: {error}.") from error
        _require_match(matches, wanted, names, flag)
        return matches
    suffixes = {suffix: [name for name in names if f".{name}".endswith(f".{suffix}")] for suffix in wanted}
    for suffix, matches in suffixes.items():
        _require_match(matches, suffix, names, flag)
    selected = {name for matches in suffixes.values() for name in matches}
    return [name for name in names if name in selected]


def _require_match(matches: Sequence[str], wanted: str, names: Iterable[str], flag: str) -> None:
    if not matches:
        parts = list(dict.fromkeys(part for name in names for part in name.split(".") if not part.isdigit()))
        raise ConfigError(
            f"--peft.{flag}: no module of this policy is named '{wanted}'.{did_you_mean(wanted, parts)} Parts of names are: "
            f"{', '.join(parts)}."
        )


def _format_targets(targets: str | Iterable[str]) -> str:
    return targets if isinstance(targets, str) else f"[{', '.join(sorted(targets))}]"

"""Low-rank adapters (LoRA) in a policy's linear layers, by the library peft, in the files that peft and LeRobot write.

A linear layer W x gets a second way beside it: W x + (alpha / r) B A x, with A (r, in) and B (out, r). Only A and B train,
and they are all that is saved; the base policy is named and loaded from where it was. The layers are replaced in place, so
that a policy with adapters is a policy still; `merge` adds B A to W and puts plain layers back.

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
"""What peft's own wrapper, which LeRobot saves, puts before every name."""
ALL_LINEAR = "all-linear"
INITIALIZATIONS = ("gaussian", "orthogonal")
"""Those of peft that leave the base's weights as they are. The others (pissa, olora, …) would need a base of their own."""


@dataclass(frozen=True)
class AdapterSettings:
    """Which adapters to add. Checked when made.

    Raises:
        ConfigError: a rank, scale or initialization that can't work.
    """

    target_modules: str | Sequence[str] | None = None
    """Linear layers: the ends of their names, a regular expression for whole names, or `all-linear`; else the policy's own."""
    full_training_modules: Sequence[str] = ()
    """Ends of names of modules that train whole and are saved with the adapters, whatever else is frozen."""
    init_type: str | None = None
    """`gaussian` or `orthogonal`; when not given A is random, and B zero, so that training starts from the base."""
    r: int = 16
    lora_alpha: int | None = None
    """Adapters are scaled by lora_alpha / r; 8 when not given, as in peft."""

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
    """The adapters that a policy has: what loading and merging them needs to know."""

    config: Any
    """peft's LoraConfig."""
    full: tuple[str, ...]
    """Names of the modules that train whole."""
    trained: frozenset[str]
    """Names of the parameters that trained before there were adapters, as the policy's settings say."""

    @property
    def base(self) -> str:
        """The base policy: a folder or a Hub id."""
        return str(self.config.base_model_name_or_path)


def add_adapters(
    policy: nn.Module, settings: AdapterSettings, base: str, revision: str | None = None
) -> Adapters:
    """Put new adapters into `policy`; from then on they train, and what `full_training_modules` names, and nothing else.

    Args:
        policy: changed in place; its global random generator draws A.
        settings: `target_modules` is given.
        base: where the policy's present weights can be loaded from: a folder or a Hub id.
        revision: there.

    Raises:
        ConfigError: names that no module has, or that are of something else than a linear layer.
        MissingDependencyError: peft is not installed.
    """
    peft = optional_import("peft", "peft")
    full = _matching(policy, settings.full_training_modules, "full_training_modules")
    targets = settings.target_modules or ()
    if targets == ALL_LINEAR:
        # The output layer over words is tied to the embedding, and no action comes out of it.
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
    """Put the adapters that `folder` holds into `policy`, which has the base's weights. They can train on.

    Raises:
        CheckpointError: a file is damaged, or of another method than LoRA.
        WeightsError: adapters that do not fit this policy.
        MissingDependencyError: peft is not installed.
    """
    peft = optional_import("peft", "peft")
    path = folder / ADAPTER_CONFIG
    data = read_adapter_config(folder)
    known = {item.name for item in dataclasses.fields(peft.LoraConfig)}
    try:
        config = peft.LoraConfig(**{name: value for name, value in data.items() if name in known})
        config.inference_mode = False
        full = _matching(policy, config.modules_to_save or (), "full_training_modules")
        adapters = _inject(policy, config, full)
    except (ConfigError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} does not fit this policy: {error}") from error
    weights = folder / ADAPTER_WEIGHTS
    found = {name.removeprefix(PREFIX): tensor for name, tensor in read_tensors([weights]).items()}
    expected = _tensors(policy, adapters)
    odd = sorted(
        name
        for name in expected.keys() | found
        if name not in expected or name not in found or expected[name].shape != found[name].shape
    )
    if odd:
        raise WeightsError(
            f"{weights} does not fit {path} and the base policy {adapters.base}: {len(odd)} of {len(expected)} weights are "
            f"missing, left over or of another shape, '{odd[0]}' first. Copy the adapters again, or name the right base in "
            "base_model_name_or_path."
        )
    with torch.no_grad():
        for name, tensor in expected.items():
            tensor.copy_(found[name])
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
    """Add the adapters to the weights that they stand beside, and put plain linear layers back.

    What trains is then what the policy's settings say, as before there were adapters.

    Raises:
        CheckpointError: a merged weight would not be finite.
    """
    for name in _adapted(policy):
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
    """The object in `folder/adapter_config.json`.

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
    """peft's layers in the place of those that `config` targets; `full` trains whole, without adapters."""
    peft = optional_import("peft", "peft")
    within = tuple(name + "." for name in full)
    targets = _matching(policy, config.target_modules, "target_modules")
    whole = [name for name in targets if name in full or name.startswith(within)]
    for name in set(targets) - set(whole):
        if not isinstance(policy.get_submodule(name), nn.Linear):
            raise ConfigError(
                f"--peft.target_modules={_shown(config.target_modules)} takes '{name}', which is a "
                f"{type(policy.get_submodule(name)).__name__}: adapters go into linear layers only. Name those, such as "
                "q_proj or .*lm_expert.*_proj."
            )
    if len(whole) == len(targets):
        raise ConfigError(
            f"--peft.target_modules={_shown(config.target_modules)}: all of it is in --peft.full_training_modules. Name "
            "further layers, or train without --peft."
        )
    trained = frozenset(name for name, parameter in policy.named_parameters() if parameter.requires_grad)
    # peft would train copies of whole modules; here they are in place, so it is only told to leave them alone.
    config.exclude_modules, config.modules_to_save = whole or None, None
    peft.inject_adapter_in_model(config, policy)
    for name in full:
        policy.get_submodule(name).requires_grad_(True)
    return Adapters(config, tuple(full), trained)


def _adapted(policy: nn.Module) -> list[str]:
    layer = optional_import("peft.tuners.lora", "peft").LoraLayer
    return [name for name, module in policy.named_modules() if isinstance(module, layer)]


def _tensors(policy: nn.Module, adapters: Adapters) -> dict[str, Tensor]:
    """What adapters are on the disk, under peft's names: the policy's own tensors, not copies."""
    peft = optional_import("peft", "peft")
    tensors: dict[str, Tensor] = dict(peft.get_peft_model_state_dict(policy, save_embedding_layers=False))
    for name in adapters.full:
        state = policy.get_submodule(name).state_dict()
        tensors |= {f"{name}.{key}": tensor for key, tensor in state.items()}
    return tensors


def _matching(policy: nn.Module, wanted: str | Iterable[str], flag: str) -> list[str]:
    """Names of the modules that peft takes for `wanted`: a regular expression for whole names, or ends of names."""
    names = [name for name, _ in policy.named_modules() if name]
    if isinstance(wanted, str):
        try:
            found = [name for name in names if re.fullmatch(wanted, name)]
        except re.error as error:
            raise ConfigError(f"--peft.{flag}={wanted} is not a regular expression: {error}.") from error
        _require(found, wanted, names, flag)
        return found
    ends = {end: [name for name in names if f".{name}".endswith(f".{end}")] for end in wanted}
    for end, found in ends.items():
        _require(found, end, names, flag)
    taken = {name for found in ends.values() for name in found}
    return [name for name in names if name in taken]


def _require(found: Sequence[str], wanted: str, names: Iterable[str], flag: str) -> None:
    if not found:
        parts = list(dict.fromkeys(part for name in names for part in name.split(".") if not part.isdigit()))
        raise ConfigError(
            f"--peft.{flag}: no module of this policy is named '{wanted}'.{did_you_mean(wanted, parts)} Parts of names are: "
            f"{', '.join(parts)}."
        )


def _shown(targets: str | Iterable[str]) -> str:
    return targets if isinstance(targets, str) else f"[{', '.join(sorted(targets))}]"

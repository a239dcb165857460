"""`smolact info`: versions, devices and what is missing, for a bug report; with --policy.type, the size of a policy."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from typing import TYPE_CHECKING, Any

from smolact.cli.help import asks_for_help, help_text
from smolact.cli.main import version
from smolact.cli.parsing import parse
from smolact.settings import rest, setting
from smolact.training.config import policy_fields

if TYPE_CHECKING:
    from torch import nn

    from smolact.policies.configuration import PolicyConfig

USAGE = "smolact info [--policy.type=smolvla [--policy.FIELD=…]]"

REQUIRED = (
    "torch",
    "numpy",
    "accelerate",
    "safetensors",
    "tokenizers",
    "huggingface_hub",
    "pyarrow",
    "av",
    "gymnasium",
)
OPTIONAL = {
    "transformers": "exchange with transformers",
    "wandb": "--wandb.enable=true",
    "lerobot": "comparing with LeRobot",
    "torchcodec": "not needed: videos are decoded with PyAV",
}
"""Packages that smolact can use, and what for."""

PARTS = {
    "vision tower": ("vision_model",),
    "connector": ("connector",),
    "text model": ("text_model", "lm_head"),
    "action expert": ("lm_expert",),
}
"""Names of a policy's parts, by what their parameters' names contain; all others are projections."""


@dataclass
class PolicyQuestion:
    """Whose size is asked for."""

    type: str | None = setting(None, "A policy type, such as smolvla.")
    path: str | None = setting(None, "A checkpoint: a folder or a Hub id.")
    settings: dict[str, Any] = rest(policy_fields)


@dataclass
class InfoConfig:
    """What `smolact info` takes."""

    policy: PolicyQuestion = field(default_factory=PolicyQuestion)


def run(argv: Sequence[str]) -> int:
    """Print versions and devices, or the size of a policy."""
    if asks_for_help(argv):
        sys.stdout.write(help_text(InfoConfig, USAGE, (__doc__ or "").strip(), argv) + "\n")
        return 0
    config, _ = parse(InfoConfig, argv)
    rows = sizes(config.policy) if config.policy.type or config.policy.path else machine()
    width = max(map(len, rows))
    sys.stdout.write("".join(f"{name.ljust(width)}  {value}\n" for name, value in rows.items()))
    return 0


def machine() -> dict[str, str]:
    """This machine, as a bug report needs it; no host or user names."""
    import torch

    rows = {
        "smolact": version(),
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}, {os.cpu_count()} cores",
    }
    rows |= {name: _version(name) or "MISSING: reinstall smolact" for name in REQUIRED}
    rows["torch build"] = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU only"
    rows["devices"] = "; ".join(_devices())
    rows |= {name: _version(name) or f"not installed ({what})" for name, what in OPTIONAL.items()}
    return rows


def sizes(question: PolicyQuestion) -> dict[str, str]:
    """Parameters of each part of a policy, and how many of them train; nothing is allocated or loaded."""
    from smolact.policies.factory import get_config_class
    from smolact.training.config import policy_type_at

    kind = question.type or policy_type_at(str(question.path))
    config_class = get_config_class(kind)
    config = (
        config_class.from_pretrained(question.path, **question.settings)
        if question.path
        else config_class(**question.settings)
    )
    counts = count_parameters(_empty_policy(config))
    rows = {"policy": kind, "vlm": str(getattr(config, "vlm_model_name", ""))}
    for part, (every, trained) in counts.items():
        rows[part] = f"{every:>13,}   {trained:>13,} train"
    return rows


def count_parameters(policy: nn.Module) -> dict[str, tuple[int, int]]:
    """Part to (parameters, those that train); `total` last."""
    counts = {part: [0, 0] for part in (*PARTS, "projections", "total")}
    for name, parameter in policy.named_parameters():
        part = next(
            (part for part, marks in PARTS.items() if set(marks) & set(name.split("."))), "projections"
        )
        for key in (part, "total"):
            counts[key][0] += parameter.numel()
            counts[key][1] += parameter.numel() * parameter.requires_grad
    return {part: (every, trained) for part, (every, trained) in counts.items()}


def _empty_policy(config: PolicyConfig) -> nn.Module:
    import torch

    from smolact.backbones.presets import find_vlm
    from smolact.policies.factory import get_policy_class

    vlm = find_vlm(config.vlm_model_name)  # type: ignore[attr-defined]
    with torch.device("meta"):
        return get_policy_class(config.type)(config, vlm=vlm, pretrained_vlm=False)  # type: ignore[call-arg]


def _devices() -> list[str]:
    import torch

    found = ["cpu"]
    for index in range(torch.cuda.device_count()):
        memory = torch.cuda.get_device_properties(index).total_memory / 2**30
        found.append(f"cuda:{index} {torch.cuda.get_device_name(index)}, {memory:.0f} GiB")
    return found + (["mps"] if torch.backends.mps.is_available() else [])


def _version(name: str) -> str | None:
    try:
        return installed(name)
    except PackageNotFoundError:
        return None

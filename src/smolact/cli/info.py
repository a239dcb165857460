"""`smolact info`: versions, devices and what is missing, for a bug report; with --policy.type, the size and cost of a policy."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from importlib.util import find_spec
from typing import Any

from smolact.cli.command import command
from smolact.cli.main import version
from smolact.cli.progress import announce
from smolact.errors import ConfigError
from smolact.settings import open_section, setting
from smolact.training.sections import policy_fields

USAGE = "smolact info [--policy.type=smolvla [--policy.FIELD=…] [--batch_size=8]]"

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
    "websockets",
)
OPTIONAL = {
    "smolact_transformers": "Hugging Face's Trainer",
    "smolact_il_studio": "smolact il-studio",
    "transformers": "Hugging Face's Trainer, IL-Studio",
    "peft": "adapters, --peft.method_type=lora",
    "lerobot": "LeRobot's robots",
    "gym_pusht": "--env.type=pusht",
    "mujoco": "--env.type=so101",
    "wandb": "--wandb.enable=true",
    "trackio": "--trackio.enable=true",
    "torchcodec": "not needed: videos are decoded with PyAV",
}
"""Optional packages and their purpose."""


@dataclass
class PolicyQuestion:
    """The policy to measure."""

    type: str | None = setting(None, "A policy type, such as smolvla.")
    path: str | None = setting(None, "A checkpoint: a folder or a Hub id.")
    settings: dict[str, Any] = open_section(policy_fields)


@dataclass
class InfoConfig:
    """Settings of `smolact info`."""

    policy: PolicyQuestion = field(default_factory=PolicyQuestion)
    batch_size: int = setting(1, "Samples of one training step, for the memory of its activations.")

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"--batch_size={self.batch_size} is too small: it must be 1 or more.")


@command(InfoConfig, USAGE)
def run(config: InfoConfig) -> None:
    """Print versions and devices, or the size of a policy."""
    announce("Loading torch …")
    has_policy = config.policy.type or config.policy.path
    lines = sizes(config.policy, config.batch_size) if has_policy else _aligned(machine())
    sys.stdout.write("".join(f"{line}\n" for line in lines))


def machine() -> dict[str, str]:
    """Return versions and devices for a bug report, without host or user names."""
    import torch

    rows = {
        "smolact": version(),
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}, {os.cpu_count()} cores",
    }
    rows |= {name: _version(name) or "MISSING: reinstall smolact" for name in REQUIRED}
    rows["torch build"] = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU only"
    rows["devices"] = "; ".join(_devices())
    rows["websockets"] = _websockets(rows["websockets"])
    rows |= {name: _version(name) or f"not installed ({what})" for name, what in OPTIONAL.items()}
    return rows


def sizes(section: PolicyQuestion, batch_size: int = 1) -> list[str]:
    """Return a policy's tree of modules, parameters, FLOPs and memory; nothing is allocated or loaded."""
    from smolact.policies.factory import get_config_class
    from smolact.policies.summary import empty_policy, summarize, table_of, tree_lines
    from smolact.policies.vlm_configuration import VLMConfig
    from smolact.training.sections import policy_type_at

    kind = section.type or policy_type_at(str(section.path))
    config_class = get_config_class(kind)
    config = (
        config_class.from_pretrained(section.path, **section.settings)
        if section.path
        else config_class(**section.settings)
    )
    summary = summarize(empty_policy(config), batch_size)
    names = {"policy": kind} | ({"vlm": config.vlm_name} if isinstance(config, VLMConfig) else {})
    return [*_aligned(names), "", *tree_lines(summary), "", *_aligned(table_of(summary))]


def _aligned(rows: Mapping[str, str]) -> list[str]:
    width = max(map(len, rows))
    return [f"{name.ljust(width)}  {value}" for name, value in rows.items()]


def _devices() -> list[str]:
    import torch

    devices = ["cpu"]
    for index in range(torch.cuda.device_count()):
        memory = torch.cuda.get_device_properties(index).total_memory / 2**30
        devices.append(f"cuda:{index} {torch.cuda.get_device_name(index)}, {memory:.0f} GiB")
    return devices + (["mps"] if torch.backends.mps.is_available() else [])


def _websockets(text: str) -> str:
    is_fast = find_spec("websockets") is None or find_spec("websockets.speedups") is not None
    return text if is_fast else f"{text}, without its C extension: pictures travel three times as slowly"


def _version(name: str) -> str | None:
    try:
        return installed(name)
    except PackageNotFoundError:
        return None

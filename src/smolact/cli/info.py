"""`smolact info`: versions, devices and what is missing, for a bug report; with --policy.type, the size and cost of a policy."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from importlib.util import find_spec

from smolact.cli.command import command
from smolact.cli.main import aligned, version
from smolact.cli.progress import announce
from smolact.cli.servers import AnyPolicy
from smolact.settings import at_least, setting

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
class InfoConfig:
    """Settings of `smolact info`."""

    policy: AnyPolicy = field(default_factory=AnyPolicy)
    batch_size: int = setting(1, "Samples of one training step, for the memory of its activations.")

    def __post_init__(self) -> None:
        at_least("batch_size", self.batch_size, 1)


@command(InfoConfig, USAGE)
def run(config: InfoConfig) -> None:
    """Print versions and devices, or the size of a policy."""
    announce("Loading torch …")
    has_policy = config.policy.type or config.policy.path
    lines = sizes(config.policy, config.batch_size) if has_policy else aligned([*machine().items()])
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


def sizes(section: AnyPolicy, batch_size: int = 1) -> list[str]:
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
    return [*aligned([*names.items()]), "", *tree_lines(summary), "", *aligned([*table_of(summary).items()])]


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

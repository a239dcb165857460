"""Where a run computes, and in which precision."""

from __future__ import annotations

import torch
from accelerate import Accelerator

from smolact.errors import ConfigError, DeviceError
from smolact.processors.steps import find_device
from smolact.training.config import TrainConfig


def make_accelerator(config: TrainConfig) -> Accelerator:
    """The device of the run, and its precision.

    Raises:
        DeviceError: `--policy.device` names one that is not there.
        ConfigError: a numbered device, or several processes.
    """
    asked = config.policy.settings.get("device")
    if asked is not None:
        if ":" in asked:
            raise ConfigError(
                f"--policy.device={asked}: choose the card by CUDA_VISIBLE_DEVICES={asked.partition(':')[2]} instead, and "
                f"give --policy.device={asked.partition(':')[0]}."
            )
        find_device(asked)
    amp = "bf16" if config.policy.settings.get("use_amp") else "no"
    accelerator = Accelerator(cpu=asked == "cpu", mixed_precision=amp)
    if asked is not None and accelerator.device.type != asked:
        raise DeviceError(
            f"--policy.device={asked}: accelerate chose '{accelerator.device}'. Check its ACCELERATE_… variables."
        )
    if accelerator.num_processes > 1:
        raise ConfigError(
            f"{accelerator.num_processes} processes were launched; this release trains with one. Start it without "
            "`accelerate launch` or torchrun."
        )
    torch.backends.cudnn.deterministic = config.cudnn_deterministic
    torch.backends.cudnn.benchmark = not config.cudnn_deterministic
    return accelerator

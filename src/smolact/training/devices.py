"""Where a run computes, in which precision, and how its processes agree."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Literal

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor

from smolact.errors import ConfigError, DeviceError
from smolact.policies.factory import best_device
from smolact.processors.steps import find_device
from smolact.training.config import TrainConfig


def make_accelerator(config: TrainConfig) -> Accelerator:
    """The device of this process, the precision, and the other processes if there are any.

    One process or many: `torchrun`, `accelerate launch` and Slurm start them, accelerate finds them.

    Raises:
        DeviceError: `--policy.device` names one that is not there.
        ConfigError: a numbered device, or a way to split the model that is not supported.
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
    # Said plainly, since under torchrun accelerate would take a machine without a GPU for a single process.
    accelerator = Accelerator(cpu=(asked or best_device()) == "cpu", mixed_precision=amp)
    if asked is not None and accelerator.device.type != asked:
        raise DeviceError(
            f"--policy.device={asked}: accelerate chose '{accelerator.device}'. Check its ACCELERATE_… variables."
        )
    supported = (
        DistributedType.NO,
        DistributedType.MULTI_CPU,
        DistributedType.MULTI_GPU,
    )
    if accelerator.distributed_type not in supported:
        raise ConfigError(
            f"accelerate is set to {accelerator.distributed_type.value}, which is not used here. Start the processes with "
            "torchrun or `accelerate launch --multi_gpu`; to split the weights over them, add --parallelism.dp_shard=-1."
        )
    copies = config.parallelism.dp_replicate
    if not config.parallelism.splits and copies not in (1, accelerator.num_processes):
        raise ConfigError(
            f"--parallelism.dp_replicate={copies}, and this run has {accelerator.num_processes} processes. Start as many "
            "(torchrun --nproc-per-node=N -m smolact train …), or drop it: each process has a copy of the weights anyway."
        )
    torch.backends.cudnn.deterministic = config.cudnn_deterministic
    torch.backends.cudnn.benchmark = not config.cudnn_deterministic
    return accelerator


@contextlib.contextmanager
def matmul_precision(device: torch.device, precision: Literal["high", "highest"]) -> Iterator[None]:
    """Within it a CUDA device multiplies float32 in that precision; elsewhere nothing changes.

    "highest" is float32, as `smolact eval` computes; "high" is TF32, with 10 bits of fraction and several times as fast, as
    `lerobot-train` computes.
    """
    if device.type != "cuda":
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def all_reduce_sum(accelerator: Accelerator, values: Tensor) -> Tensor:
    """`values` summed over all processes; the same on each."""
    if accelerator.num_processes == 1:
        return values
    summed: Tensor = accelerator.reduce(values, reduction="sum")
    return summed

"""The device, the precision and the processes of a run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Literal

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType

from smolact.errors import ConfigError, DeviceError
from smolact.policies.factory import best_device
from smolact.processors.steps import find_device
from smolact.training.config import TrainConfig


def make_accelerator(config: TrainConfig) -> Accelerator:
    """Return the device of this process, the precision, and the other processes if there are any.

    `torchrun`, `accelerate launch` or Slurm start the processes, accelerate finds them.

    Raises:
        DeviceError: the device of `--policy.device` does not exist.
        ConfigError: a device with an index, or an unsupported kind of parallelism.
    """
    requested = config.policy.settings.get("device")
    if requested is not None:
        if ":" in requested:
            raise ConfigError(
                f"--policy.device={requested}: choose the card by CUDA_VISIBLE_DEVICES={requested.partition(':')[2]} instead, and "
                f"give --policy.device={requested.partition(':')[0]}."
            )
        find_device(requested)
    amp = "bf16" if config.policy.settings.get("use_amp") else "no"
    # Set explicitly: under torchrun accelerate would treat a machine without a GPU as a single process.
    accelerator = Accelerator(cpu=(requested or best_device()) == "cpu", mixed_precision=amp)
    if requested is not None and accelerator.device.type != requested:
        raise DeviceError(
            f"--policy.device={requested}: accelerate chose '{accelerator.device}'. Check its ACCELERATE_… variables."
        )
    supported = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
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
    """A context with this precision of float32 products on a CUDA device; elsewhere nothing changes.

    "highest" is float32, as in `smolact eval`; "high" is TF32, with 10 bits of fraction and several times as fast, as in
    `lerobot-train`.
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

"""In which precision this machine multiplies quickest: measured, because a processor that can do bfloat16 may emulate it."""

from __future__ import annotations

import logging
import time
from functools import lru_cache
from importlib.util import find_spec

import torch
import torch.nn.functional as F  # noqa: N812

from smolact.errors import ConfigError, MissingDependencyError

logger = logging.getLogger(__name__)

_HAS_FLOAT8 = (8, 9)
"""The compute capability of GPUs that can take float8 apart: Ada, Hopper and what came after."""

_GAIN = 1.3
"""How much quicker bfloat16 has to be on a CPU before its rounding is worth it."""


def quickest_dtype(device: torch.device) -> torch.dtype:
    """`torch.bfloat16` where its matrix products are quicker than float32's, else `torch.float32`."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    return _quickest_on_cpu() if device.type == "cpu" else torch.float32


def check_int8(device: torch.device, dtype: torch.dtype | None) -> None:
    """Whether weights in 8 bits work with these.

    Raises:
        ConfigError: they do not.
    """
    if device.type != "cpu":
        raise ConfigError(f"int8=True is for a CPU, and the policy is on {device}. Leave it out there.")
    if dtype not in (None, torch.float32):
        raise ConfigError(
            f"int8=True works with dtype=torch.float32, not with {dtype}. Leave one of them out."
        )


def check_fp8(device: torch.device) -> None:
    """Whether weights in float8 work there: on a CPU to see what the rounding costs, on a GPU to gain by it.

    Raises:
        ConfigError: they do not.
        MissingDependencyError: triton, whose kernels a GPU needs for them, is not there.
    """
    if device.type == "cpu":
        return
    if device.type != "cuda":
        raise ConfigError(
            f"fp8=True is for a GPU with CUDA (or a CPU, to see what it costs), and the policy is on {device}. Leave it out."
        )
    found = torch.cuda.get_device_capability(device)
    if found < _HAS_FLOAT8:
        raise ConfigError(
            f"fp8=True needs a GPU of compute capability {'.'.join(map(str, _HAS_FLOAT8))} or more (Ada, Hopper), and "
            f"{torch.cuda.get_device_name(device)} has {'.'.join(map(str, found))}. Leave it out."
        )
    check_kernels(device)


def check_kernels(device: torch.device) -> None:
    """Whether our own kernels can run there.

    Raises:
        ConfigError: it is no GPU with CUDA.
        MissingDependencyError: triton is not there.
    """
    if device.type != "cuda":
        raise ConfigError(
            f"triton=True needs a GPU with CUDA, and the policy is on {device}. Leave it out, or move the policy there."
        )
    if find_spec("triton") is None:
        raise MissingDependencyError(
            "triton=True, and fp8=True on a GPU, need the package 'triton', which is not installed. PyTorch's builds for CUDA on "
            "Linux bring the one that they fit; where it was taken out: pip install triton. Or leave both out."
        )


@lru_cache(maxsize=1)
def _quickest_on_cpu() -> torch.dtype:
    seconds = {dtype: _seconds(dtype) for dtype in (torch.float32, torch.bfloat16)}
    gain = seconds[torch.float32] / seconds[torch.bfloat16]
    chosen = torch.bfloat16 if gain >= _GAIN else torch.float32
    logger.info(
        "This processor (%s) multiplies bfloat16 matrices %.2f times as fast as float32's: predicting in %s.",
        torch.backends.cpu.get_cpu_capability(),
        gain,
        str(chosen).removeprefix("torch."),
    )
    return chosen


def _seconds(dtype: torch.dtype, rows: int = 128, width: int = 768) -> float:
    """The best of three products, which is nearest to what the processor can do whatever else it does."""
    x, weight = torch.ones(rows, width, dtype=dtype), torch.ones(width, width, dtype=dtype)
    times = []
    for _ in range(4):  # the first one warms up
        began = time.perf_counter()
        F.linear(x, weight)
        times.append(time.perf_counter() - began)
    return min(times[1:])

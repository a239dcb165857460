"""The fastest precision of this machine, measured, because a processor that supports bfloat16 may emulate it."""

from __future__ import annotations

import logging
import time
from functools import lru_cache
from importlib.util import find_spec

import torch
import torch.nn.functional as F  # noqa: N812

from smolact.errors import ConfigError, MissingDependencyError

logger = logging.getLogger(__name__)

_MIN_FLOAT8_CAPABILITY = (8, 9)
"""The least compute capability of GPUs with float8: Ada, Hopper and later."""

_GAIN = 1.3
"""The least speed-up by bfloat16 on a CPU that is worth its rounding."""


def quickest_dtype(device: torch.device) -> torch.dtype:
    """Return `torch.bfloat16` if its matrix products are faster than float32's, else `torch.float32`."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    return _quickest_on_cpu() if device.type == "cpu" else torch.float32


def check_int8(device: torch.device, dtype: torch.dtype | None) -> None:
    """Raise a `ConfigError` unless weights in 8 bits work on the device and with the dtype."""
    if device.type != "cpu":
        raise ConfigError(f"int8=True is for a CPU, and the policy is on {device}. Leave it out there.")
    if dtype not in (None, torch.float32):
        raise ConfigError(
            f"int8=True works with dtype=torch.float32, not with {dtype}. Leave one of them out."
        )


def check_fp8(device: torch.device) -> None:
    """Raise unless weights in float8 work on the device: on a CPU to measure the rounding error, on a GPU to be faster.

    Raises:
        ConfigError: they do not.
        MissingDependencyError: triton, whose kernels a GPU needs for them, is not installed.
    """
    if device.type == "cpu":
        return
    if device.type != "cuda":
        raise ConfigError(
            f"fp8=True is for a GPU with CUDA (or a CPU, to see what it costs), and the policy is on {device}. Leave it out."
        )
    capability = torch.cuda.get_device_capability(device)
    if capability < _MIN_FLOAT8_CAPABILITY:
        raise ConfigError(
            f"fp8=True needs a GPU of compute capability {'.'.join(map(str, _MIN_FLOAT8_CAPABILITY))} or more (Ada, Hopper), and "
            f"{torch.cuda.get_device_name(device)} has {'.'.join(map(str, capability))}. Leave it out."
        )
    check_kernels(device)


def check_kernels(device: torch.device) -> None:
    """Raise unless smolact's own kernels can run on the device.

    Raises:
        ConfigError: it is not a GPU with CUDA.
        MissingDependencyError: triton is not installed.
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
    tokens = torch.ones(1, 1, 128, 64, dtype=torch.bfloat16)
    try:
        F.scaled_dot_product_attention(tokens, tokens, tokens)
    except RuntimeError as error:
        # ATEN_CPU_CAPABILITY says less than oneDNN finds, and PyTorch mixes the two.
        logger.info("PyTorch computes no attention in bfloat16 here (%s): predicting in float32.", error)
        return torch.float32
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
    """Return the shortest time of three products, which depends least on other load."""
    x, weight = torch.ones(rows, width, dtype=dtype), torch.ones(width, width, dtype=dtype)
    times = []
    for _ in range(4):  # the first one warms up
        start = time.perf_counter()
        F.linear(x, weight)
        times.append(time.perf_counter() - start)
    return min(times[1:])

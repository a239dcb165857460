"""In which precision this machine multiplies quickest: measured, because a processor that can do bfloat16 may emulate it."""

from __future__ import annotations

import logging
import time
from functools import lru_cache

import torch
import torch.nn.functional as F  # noqa: N812

from smolact.errors import ConfigError

logger = logging.getLogger(__name__)

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

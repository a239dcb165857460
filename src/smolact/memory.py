"""Memory of a device, and detection of out-of-memory errors."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")

LESS_TO_TRAIN = (
    "Lower --batch_size (with --gradient_accumulation_steps raised by the same factor the training stays the same), or give "
    "--gradient_checkpointing=true."
)
"""Advice to reduce the memory of training."""

_PROC, _CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
_OUT_OF_MEMORY = re.compile(
    r"DefaultCPUAllocator|out of memory|not enough memory|cannot allocate memory|bad_alloc|_ALLOC_FAILED",
    re.IGNORECASE,
)
"""Matches the message of torch's RuntimeError on a CPU; on a GPU its error is a RuntimeError, too."""
_REQUESTED = re.compile(
    r"(?:tried to|unable to) allocate (?P<number>[\d.]+) ?(?P<unit>bytes|[KMGTP]i?B)"
    r"|(?:malloc|realloc) of size (?P<bytes>\d+)",
    re.IGNORECASE,
)
_GPU_ERROR = re.compile(r"\b(CUDA|HIP|XPU|MPS|CUBLAS|CUDNN)", re.IGNORECASE)


class Memory(NamedTuple):
    """Bytes of a device's memory."""

    total: int
    """Maximum for this process."""
    free: int
    """Unused at present."""


def memory_of(device: str) -> Memory | None:
    """Return a device type's memory in bytes; None if it is unknown.

    On a CPU (and "mps", which shares its memory) the total is the smallest of the machine's memory, the container's limit
    (cgroup) and the process's limit.
    """
    if device == "cuda":
        import torch

        free, total = torch.cuda.mem_get_info()
        return Memory(total, free)
    if device not in ("cpu", "mps") or "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", ()):
        return None
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    total = min([machine, *_limits()])
    return Memory(total, min(total, _available(machine)))


def failed_allocation(error: BaseException) -> str | None:
    """Return `The machine's memory ran out: 600 MiB more were needed.` for an out-of-memory error; otherwise None."""
    text = str(error)
    is_out_of_memory = (
        isinstance(error, MemoryError)  # numpy's and pyarrow's are of this type
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or (isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(text) is not None)
    )
    if not is_out_of_memory:
        return None
    needed = _requested_bytes(text)
    owner = "The GPU's" if isinstance(error, RuntimeError) and _GPU_ERROR.search(text) else "The machine's"
    return f"{owner} memory ran out" + ("." if needed is None else f": {size(needed)} more were needed.")


def size(count: float) -> str:
    """Format a number of bytes with its unit."""
    return scaled(count, 1024, UNITS)


def file_size(count: float) -> str:
    """Format a number of bytes on a disk or a wire: in powers of 1000."""
    return scaled(count, 1000, ("B", "kB", "MB", "GB", "TB"))


def scaled(count: float, base: int, units: Sequence[str]) -> str:
    """Format a count in the largest of `units` (each `base` times the previous one) that it reaches."""
    power = 0
    while count >= base and power < len(units) - 1:
        count, power = count / base, power + 1
    return f"{count:.3g} {units[power]}" if count < 999.5 else f"{count:.0f} {units[power]}"


def _requested_bytes(text: str) -> float | None:
    """Return the requested bytes in an error's message."""
    match = _REQUESTED.search(text)
    if match is None:
        return None
    if match["bytes"]:
        return float(match["bytes"])
    unit = match["unit"]
    power = 0 if unit.lower() == "bytes" else "KMGTP".index(unit[0].upper()) + 1
    return float(match["number"].rstrip(".")) * 1024.0**power


def _available(machine: int) -> int:
    """Return the memory available without swapping on Linux; elsewhere all of it."""
    path = _PROC / "meminfo"
    match = re.search(r"^MemAvailable: +(\d+) kB", path.read_text(), re.MULTILINE) if path.is_file() else None
    return machine if match is None else int(match[1]) * 1024


def _limits() -> Iterator[int]:
    """Yield the limits of this process and of its cgroups (both versions), from its own to the outermost."""
    if sys.platform != "win32":
        import resource

        for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA):
            limit = resource.getrlimit(kind)[0]
            if limit != resource.RLIM_INFINITY:
                yield limit
    path = _PROC / "self/cgroup"
    for line in path.read_text().splitlines() if path.is_file() else ():
        _, kinds, group_path = line.split(":", 2)
        if kinds not in ("", "memory"):
            continue
        top, name = (_CGROUPS / "memory", "memory.limit_in_bytes") if kinds else (_CGROUPS, "memory.max")
        group = top / group_path.lstrip("/")
        for folder in (group, *group.parents):
            file = folder / name
            text = file.read_text().strip() if file.is_file() else ""
            if text.isdecimal():  # "max" where there is none
                yield int(text)
            if folder == top:
                break

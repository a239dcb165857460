"""How much memory a device has, and which errors say that there was not enough of it."""

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
"""What takes less memory in a training."""

_PROC, _CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
_REFUSED = re.compile(
    r"DefaultCPUAllocator|out of memory|not enough memory|cannot allocate memory|bad_alloc|_ALLOC_FAILED",
    re.IGNORECASE,
)
"""In the message of a RuntimeError, which is what torch raises on a CPU; on a GPU its error is one, too."""
_ASKED = re.compile(
    r"(?:tried to|unable to) allocate (?P<number>[\d.]+) ?(?P<unit>bytes|[KMGTP]i?B)"
    r"|(?:malloc|realloc) of size (?P<bytes>\d+)",
    re.IGNORECASE,
)
_OF_GPU = re.compile(r"\b(CUDA|HIP|XPU|MPS|CUBLAS|CUDNN)", re.IGNORECASE)


class Memory(NamedTuple):
    """Bytes of a device's memory."""

    total: int
    """What this process could have at most."""
    free: int
    """What nobody uses now."""


def memory_of(device: str) -> Memory | None:
    """The memory of a device of this type, in bytes; None where nothing says how much it is.

    On a CPU (and on "mps", which shares its memory) the total is the smallest of the machine's memory, the limit of the
    container (cgroup) and that of the process.
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
    """`The machine's memory ran out: 600 MiB more were needed.`, if an error says so; None if it is another error."""
    text = str(error)
    is_it = (
        isinstance(error, MemoryError)  # numpy's and pyarrow's are of this type
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or (isinstance(error, RuntimeError) and _REFUSED.search(text) is not None)
    )
    if not is_it:
        return None
    asked = _asked(text)
    whose = "The GPU's" if isinstance(error, RuntimeError) and _OF_GPU.search(text) else "The machine's"
    return f"{whose} memory ran out" + ("." if asked is None else f": {size(asked)} more were needed.")


def size(count: float) -> str:
    """A count of bytes with its unit."""
    return scaled(count, 1024, UNITS)


def scaled(count: float, base: int, units: Sequence[str]) -> str:
    """A count in the largest of `units` (each `base` times the one before) of which there is at least one."""
    power = 0
    while count >= base and power < len(units) - 1:
        count, power = count / base, power + 1
    return f"{count:.3g} {units[power]}" if count < 999.5 else f"{count:.0f} {units[power]}"


def _asked(text: str) -> float | None:
    """How many bytes an error says were asked for."""
    found = _ASKED.search(text)
    if found is None:
        return None
    if found["bytes"]:
        return float(found["bytes"])
    unit = found["unit"]
    power = 0 if unit.lower() == "bytes" else "KMGTP".index(unit[0].upper()) + 1
    return float(found["number"].rstrip(".")) * 1024.0**power


def _available(machine: int) -> int:
    """What Linux says could be had without swapping; elsewhere all of it."""
    path = _PROC / "meminfo"
    found = re.search(r"^MemAvailable: +(\d+) kB", path.read_text(), re.MULTILINE) if path.is_file() else None
    return machine if found is None else int(found[1]) * 1024


def _limits() -> Iterator[int]:
    """Limits of this process, and of the cgroups (both versions) that it is in, from its own up to the outermost."""
    if sys.platform != "win32":
        import resource

        for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA):
            limit = resource.getrlimit(kind)[0]
            if limit != resource.RLIM_INFINITY:
                yield limit
    path = _PROC / "self/cgroup"
    for line in path.read_text().splitlines() if path.is_file() else ():
        _, kinds, own = line.split(":", 2)
        if kinds not in ("", "memory"):
            continue
        top, name = (_CGROUPS / "memory", "memory.limit_in_bytes") if kinds else (_CGROUPS, "memory.max")
        group = top / own.lstrip("/")
        for folder in (group, *group.parents):
            file = folder / name
            text = file.read_text().strip() if file.is_file() else ""
            if text.isdecimal():  # "max" where there is none
                yield int(text)
            if folder == top:
                break

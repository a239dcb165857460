"""The cores of this machine, and the processes and threads that compute on them."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from multiprocessing.connection import wait
from pathlib import Path

from smolact.errors import ConfigError

SMALL = 20_000_000
"""Parameters of a policy that gains by processes. Larger ones have operations that are long enough for threads."""
_QUOTAS = (
    (Path("/sys/fs/cgroup/cpu.max"), None),
    (Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"), Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us")),
)


def cores() -> int:
    """The processor cores that this process may use: those it may run on, or a container's share of them, rounded up."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(there, _quota())))


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Within it torch computes in one thread: for a small network, whose operations are too short to be shared."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def check_main_guard() -> None:
    """See that processes can be started: each of them runs the program's file again, up to its guard.

    Raises:
        ConfigError: the program is a script without one, which would begin anew in each process.
    """
    main = sys.modules["__main__"]
    spec, path = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    if path is None or (spec is not None and spec.name.endswith("__main__")):
        return  # a notebook or a package: nothing is run again
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if "__name__" not in Path(path).read_text(encoding="utf-8"):
            raise ConfigError(
                f"{path} starts processes, and each of them would run it from its beginning. Put what it does behind "
                'the line `if __name__ == "__main__":`'
            )


def leave_with_parent() -> None:
    """Leave Ctrl-C to the parent, and end when the parent is gone, however that came about.

    Called first by a process that `multiprocessing` has started. Without it, a parent that is killed leaves children behind that
    wait for it for ever.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def _quota() -> float:
    """How many cores a container's limit is worth; infinite without one."""
    for path, beside in _QUOTAS:
        try:
            words = path.read_text().split() + ([] if beside is None else beside.read_text().split())
            quota, period = float(words[0]), float(words[1])
        except (OSError, ValueError, IndexError):
            continue
        return quota / period if quota > 0 and period > 0 else math.inf
    return math.inf

"""Processor cores, processes and threads of this machine."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import multiprocessing.util
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from smolact.errors import ConfigError

SMALL = 20_000_000
"""Parameters up to which a policy gains by processes. Larger policies have operations long enough for threads."""
_QUOTAS = (
    (Path("/sys/fs/cgroup/cpu.max"), None),
    (Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"), Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us")),
)


def cores() -> int:
    """Return the usable processor cores: the process's affinity, or a container's quota, rounded up."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(available, _quota())))


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Run torch in one thread within the block: a small network's operations are too short to share."""
    import torch

    previous = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(previous)


def check_main_guard() -> None:
    """Raise a `ConfigError` unless processes can be started: each runs the program's file again, up to its main guard.

    Raises:
        ConfigError: the program is a script without a main guard, which would run again in each process.
    """
    main = sys.modules["__main__"]
    spec, path = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    if path is None or (spec is not None and spec.name.endswith("__main__")):
        return  # a notebook or a package is not run again
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if "__name__" not in Path(path).read_text(encoding="utf-8"):
            raise ConfigError(
                f"{path} starts processes, and each of them would run it from its beginning. Put what it does behind "
                'the line `if __name__ == "__main__":`'
            )


@contextlib.contextmanager
def worker_processes(
    work: Callable[..., None], arguments: Sequence[tuple[Any, ...]]
) -> Iterator[list[tuple[BaseProcess, Connection]]]:
    """Start a process for each of `arguments` that calls `work(*arguments, pipe)`; they are terminated at the end of the block.

    Args:
        work: it is pickled, as the arguments are, and writes its results to its pipe.

    Yields:
        each process, and the end of its pipe for reading, which ends (EOFError) when the process does.

    Raises:
        ConfigError: the program can't start processes (`check_main_guard`).
    """
    check_main_guard()
    context = multiprocessing.get_context(
        "spawn"
    )  # a forked process would inherit the locks of running threads
    workers: list[tuple[BaseProcess, Connection]] = []
    try:
        for each in arguments:
            receiver, sender = context.Pipe(duplex=False)
            worker: BaseProcess = context.Process(target=_run_worker, args=(work, *each, sender), daemon=True)
            worker.start()
            sender.close()  # so that the pipe ends when the worker dies
            workers.append((worker, receiver))
        yield workers
    finally:
        for worker, receiver in workers:
            receiver.close()
            worker.terminate()
            worker.join()


def _run_worker(work: Callable[..., None], *arguments: Any) -> None:
    exit_with_parent()
    work(*arguments)


def exit_with_parent() -> None:
    """Ignore Ctrl-C, and exit when the parent process is gone for any reason.

    Call it first in a process that `multiprocessing` started. Otherwise the children of a killed parent wait forever.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def exit_without_finalizing(worker: int = 0) -> None:
    """Let this process end when its work is done, without Python's finalization. A `worker_init_fn` for a DataLoader.

    A worker whose loader is dropped leaves a thread that still pickles tensors. Finalization would stop that thread inside
    PyTorch's code, which aborts the process, and the abort is raised in the process that dropped the loader.
    """

    def leave() -> None:
        if sys.exc_info()[0] is None:  # otherwise Python prints the error and sets the exit code
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)

    multiprocessing.util.Finalize(None, leave, exitpriority=-1000)


def _quota() -> float:
    """Return a container's limit in cores; infinite without one."""
    for path, period_path in _QUOTAS:
        try:
            words = path.read_text().split() + (
                [] if period_path is None else period_path.read_text().split()
            )
            quota, period = float(words[0]), float(words[1])
        except (OSError, ValueError, IndexError):
            continue
        return quota / period if quota > 0 and period > 0 else math.inf
    return math.inf

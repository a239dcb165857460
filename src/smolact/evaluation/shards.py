"""Parallel evaluation: each of n local processes plays every n-th episode and writes the results to its own log file."""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from smolact.errors import SmolactError
from smolact.evaluation.suite import EpisodeLog, Shard
from smolact.machine import worker_processes

POLL_INTERVAL_S = 0.5


def play_shards(
    play: Callable[[Shard], None],
    processes: int,
    log: EpisodeLog,
    on_poll: Callable[[EpisodeLog], None] | None = None,
) -> None:
    """Play an evaluation's episodes in several processes, and return when all of them have ended.

    Args:
        play: plays a shard and writes it to the log's folder (see `run_suite`); it is pickled to each process.
        log: a log with a folder; it is reread while episodes end.
        on_poll: called with `log` after each poll, for a progress bar.

    Raises:
        ConfigError: the program can't start processes.
        SmolactError: `play` raised it in a process, or a process died. The other processes are terminated.
    """
    with worker_processes(_play, [(play, Shard(rank, processes)) for rank in range(processes)]) as workers:
        running = list(workers)
        while running:
            wait([pipe for _, pipe in running], timeout=POLL_INTERVAL_S)
            running = [(worker, pipe) for worker, pipe in running if not _is_done(worker, pipe)]
            log.reread()
            if on_poll is not None:
                on_poll(log)


def _is_done(worker: BaseProcess, pipe: Connection) -> bool:
    if not pipe.poll():
        return False
    try:
        error: Any = pipe.recv()
    except EOFError:
        worker.join()
        raise SmolactError(
            f"A process that plays episodes ended before its time (exit code {worker.exitcode}); memory may have run out. Use fewer "
            "processes. The episodes that are over are kept."
        ) from None
    if error is not None:
        raise error
    return True


def _play(play: Callable[[Shard], None], shard: Shard, pipe: Connection) -> None:
    import torch

    torch.set_num_threads(1)  # the processes share the cores
    try:
        play(shard)
    except SmolactError as error:
        pipe.send(error)
    else:
        pipe.send(None)

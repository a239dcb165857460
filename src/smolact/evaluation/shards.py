"""An evaluation shared out over processes of this machine: each plays every n-th episode, and writes what came of it into a log of its own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from smolact.errors import SmolactError
from smolact.evaluation.suite import EpisodeLog, Shard
from smolact.machine import check_main_guard, leave_with_parent

LOOKS_EVERY_S = 0.5


def play_shards(
    play: Callable[[Shard], None],
    processes: int,
    log: EpisodeLog,
    on_look: Callable[[EpisodeLog], None] | None = None,
) -> None:
    """Play an evaluation's episodes in several processes, and return when all of them are done.

    Args:
        play: plays a share and writes it into the log's folder (see `run_suite`); it is sent to each process.
        processes: how many.
        log: has a folder; it is read again as episodes end.
        on_look: is called with it, once and again, for a progress bar.

    Raises:
        ConfigError: the program can't start processes (`check_main_guard`).
        SmolactError: what `play` raised in a process, or that one of them died. The others are ended then.
    """
    check_main_guard()
    context = multiprocessing.get_context("spawn")
    workers: list[tuple[BaseProcess, Connection]] = []
    try:
        for rank in range(processes):
            ours, theirs = context.Pipe(duplex=False)
            worker: BaseProcess = context.Process(
                target=_play, args=(play, Shard(rank, processes), theirs), daemon=True
            )
            worker.start()
            theirs.close()
            workers.append((worker, ours))
        playing = list(workers)
        while playing:
            wait([pipe for _, pipe in playing], timeout=LOOKS_EVERY_S)
            playing = [(worker, pipe) for worker, pipe in playing if not _is_done(worker, pipe)]
            log.reread()
            if on_look is not None:
                on_look(log)
    finally:
        for worker, pipe in workers:
            pipe.close()
            worker.terminate()
            worker.join()


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
    leave_with_parent()
    import torch

    torch.set_num_threads(1)  # the processes have the cores
    try:
        play(shard)
    except SmolactError as error:
        pipe.send(error)
    else:
        pipe.send(None)

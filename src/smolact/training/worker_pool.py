"""Local processes that share a run's steps: small policies train faster in processes than in threads.

Threads would synchronize thousands of times a step for a small network's short operations and, on a busy machine, wait for
a thread that is not scheduled. Processes synchronize once a step, with weights and gradients in shared memory.

    main process:  sends step n          computes pieces until none is free    sums the gradients, runs the optimizer
    worker:        waits for a step      computes pieces until none is free    sends the statistics

If a worker dies, the main process recomputes its pieces. If the main process dies, the workers' pipes close, and they exit.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch
import torch.multiprocessing
from torch import Tensor

from smolact.datasets.unreadable import Unreadable
from smolact.errors import SmolactError, TrainingError
from smolact.machine import exit_with_parent
from smolact.training.gradients import GradientPart, GradientWorker, split, split_evenly

logger = logging.getLogger(__name__)

TIMEOUT_S = 120.0
"""Seconds to wait for a worker's result, or for the lock."""


@dataclass(frozen=True)
class StepGradients:
    """The result of a step of all processes; the gradients are in the parameters' `grad`.

    Attributes:
        loss, entries: sums, as tensors ().
        unreadable: frames that could not be read.
        waited: seconds that this process spent on reading.
        busy: this process's CPU time as a share of its wall time.
    """

    loss: Tensor
    entries: Tensor
    unreadable: list[Unreadable]
    waited: float
    busy: float


class WorkQueue:
    """The pieces of the current step, each of which is claimed by one process."""

    def __init__(self, context: Any, most: int) -> None:
        self._lock = context.Lock()
        self._state = context.RawArray("q", 3 + most)  # step, pieces, next piece, owners

    def begin(self, step: int, number: int) -> None:
        """Begin a step with unclaimed pieces."""
        with self._locked():
            self._state[0], self._state[1], self._state[2] = step, number, 0

    def take(self, step: int, worker: int) -> Iterator[int]:
        """Claim pieces of a step, one after the other, until none is free or another step has begun."""
        while True:
            with self._locked():
                piece = self._state[2]
                if self._state[0] != step or piece == self._state[1]:
                    return
                self._state[2], self._state[3 + piece] = piece + 1, worker
            yield piece

    def owner(self, piece: int) -> int:
        """Return the worker that claimed a piece."""
        return int(self._state[3 + piece])

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        if not self._lock.acquire(timeout=TIMEOUT_S):
            raise TrainingError(
                "A process that trains was killed in the wrong moment, and the others can't go on. Resume the run."
            )
        try:
            yield
        finally:
            self._lock.release()


@dataclass
class _Worker:
    process: Any
    pipe: Connection
    number: int
    is_ready: bool = False
    is_dead: bool = False


@dataclass
class WorkerPool:
    """This process and its workers; `active` of them share the next step.

    Args:
        most: maximum number of pieces in a step.

    Attributes:
        number: number of pieces in the next step.
        active: number of processes that take part, with this one, if they are ready.
    """

    learner: GradientWorker
    count: int
    most: int
    number: int = 1
    active: int = 1
    _workers: list[_Worker] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._context = torch.multiprocessing.get_context("spawn")
        self.learner.policy.share_memory()
        trained = self.learner.trained
        self._slots = torch.zeros(self.most, sum(parameter.numel() for parameter in trained))
        self._slots.share_memory_()  # type: ignore[no-untyped-call]
        self._claims = WorkQueue(self._context, self.most)
        self._step = 0
        self._threads: int | None = None

    @property
    def ready(self) -> int:
        """Number of processes that are ready, with this one."""
        for worker in self._workers:
            if not worker.is_ready and not worker.is_dead and worker.pipe.poll():
                self._receive(worker)
        return 1 + sum(worker.is_ready and not worker.is_dead for worker in self._workers)

    @property
    def started(self) -> int:
        """Number of processes that are alive, with this one."""
        return 1 + sum(not worker.is_dead for worker in self._workers)

    def start(self, number: int) -> None:
        """Start processes until there are `number`, with this one; new ones need some seconds to be ready."""
        while self.started < number:
            ours, theirs = self._context.Pipe()
            process = self._context.Process(
                target=_run_worker,
                args=(self.count, self._slots, self._claims, theirs, 1 + len(self._workers)),
                name=f"smolact training {1 + len(self._workers)}",
                daemon=True,
            )
            process.start()
            theirs.close()
            # Sent by a thread, since the process receives it only after its imports.
            learner = bytes(ForkingPickler.dumps(self.learner))
            threading.Thread(target=_send, args=(ours, learner), daemon=True).start()
            self._workers.append(_Worker(process, ours, 1 + len(self._workers)))

    def gradients(self, first: int) -> StepGradients:
        """Compute the gradients of the step at stream position `first`, into the parameters.

        Raises:
            SmolactError: reading a sample failed, in any process.
        """
        if self._threads is None:
            self._threads = torch.get_num_threads()
            torch.set_num_threads(1)  # in every process, one thread computes a piece
        self._step += 1
        pieces: dict[int, GradientPart] = {}
        self._claims.begin(self._step, self.number)
        self.ready  # noqa: B018, polls for workers that have become ready
        active = [worker for worker in self._workers if worker.is_ready and not worker.is_dead]
        active = active[: self.active - 1]
        for worker in active:
            self._send(worker, (self._step, first, self.number))
        for number in self._claims.take(self._step, 0):
            pieces[number] = self._compute(number, first)
        own_parts = list(pieces.values())
        last_answer = time.monotonic()
        while missing := [number for number in range(self.number) if number not in pieces]:
            owners = {self._claims.owner(number) for number in missing}
            waited_for = [worker for worker in active if worker.number in owners and not worker.is_dead]
            for number in missing:  # claimed by dead workers
                if all(worker.number != self._claims.owner(number) for worker in waited_for):
                    pieces[number] = self._compute(number, first)
            if not waited_for:
                continue
            readable = wait([worker.pipe for worker in waited_for], timeout=1.0)
            for worker in waited_for:
                if worker.pipe in readable:
                    last_answer = time.monotonic()
                    answer = self._receive(worker)
                    if answer is not None and answer[0] == self._step:
                        pieces[answer[1]] = answer[2]
                elif time.monotonic() - last_answer > TIMEOUT_S:
                    self._drop(worker, f"has not answered for {TIMEOUT_S:.0f} s")
        return self._combine([pieces[number] for number in range(self.number)], own_parts)

    def close(self) -> None:
        """Stop the workers."""
        for worker in self._workers:
            with contextlib.suppress(OSError):
                worker.pipe.close()
        for worker in self._workers:
            worker.process.join(timeout=2.0)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
        self._workers.clear()
        if self._threads is not None:
            torch.set_num_threads(self._threads)

    def _compute(self, number: int, first: int) -> GradientPart:
        positions = _positions(self.count, self.number, number, first)
        return self.learner.gradients(positions, self._slots[number])

    def _combine(self, pieces: Sequence[GradientPart], own_parts: Sequence[GradientPart]) -> StepGradients:
        """Sum the pieces, in their order."""
        trained = self.learner.trained
        reached = [any(flags) for flags in zip(*(piece.has_gradient for piece in pieces), strict=True)]
        slots = self._slots[: self.number]
        for piece, slot in zip(pieces, slots, strict=True):
            if not all(piece.has_gradient):
                for part, has_gradient in zip(split(slot, trained), piece.has_gradient, strict=True):
                    if not has_gradient:
                        part.zero_()
        total = slots.sum(0)  # in one thread, in the order of the pieces
        for parameter, part, is_reached in zip(trained, split(total, trained), reached, strict=True):
            parameter.grad = part if is_reached else None
        seconds = sum(piece.seconds for piece in own_parts)
        return StepGradients(
            torch.tensor(sum(piece.loss for piece in pieces)),
            torch.tensor(sum(piece.entries for piece in pieces)),
            [frame for piece in pieces for frame in piece.unreadable],
            sum(piece.waited for piece in own_parts),
            sum(piece.busy for piece in own_parts) / seconds if seconds else 1.0,
        )

    def _send(self, worker: _Worker, message: Any) -> None:
        try:
            worker.pipe.send(message)
        except OSError:
            self._drop(worker, "has ended")

    def _receive(self, worker: _Worker) -> tuple[int, int, GradientPart] | None:
        """Receive a worker's result, or raise its error; None if it became ready or has died."""
        try:
            answer = worker.pipe.recv()
        except (EOFError, OSError):
            self._drop(worker, "has ended")
            return None
        if isinstance(answer, BaseException):
            raise answer
        if answer is None:
            worker.is_ready = True
            return None
        step, number, piece = answer
        return step, number, piece

    def _drop(self, worker: _Worker, why: str) -> None:
        worker.is_dead = True
        with contextlib.suppress(OSError):
            worker.process.kill()
        logger.warning("A process that trains (%s) %s; the others go on without it.", worker.process.pid, why)


def _positions(count: int, number: int, piece: int, first: int) -> range:
    """Return the stream positions of one of `number` pieces of the step at position `first`."""
    span = split_evenly(count, number)[piece]
    return range(first + span.start, first + span.stop)


def _send(pipe: Connection, learner: bytes) -> None:
    with contextlib.suppress(OSError):  # the process has died, which `gradients` detects
        pipe.send_bytes(learner)


def _run_worker(count: int, slots: Tensor, claims: WorkQueue, pipe: Connection, worker: int) -> None:
    """Compute pieces in a worker until its pipe is closed."""
    exit_with_parent()
    torch.set_num_threads(1)
    with contextlib.suppress(EOFError, OSError):
        learner: GradientWorker = pipe.recv()
        learner.policy.train()
        pipe.send(None)
        while True:
            step, first, number = pipe.recv()
            try:
                for piece in claims.take(step, worker):
                    positions = _positions(count, number, piece, first)
                    pipe.send((step, piece, learner.gradients(positions, slots[piece])))
            except SmolactError as error:
                pipe.send(error)
            except (OSError, EOFError):
                raise
            except Exception as error:
                pipe.send(TrainingError(f"A process that trains failed: {type(error).__name__}: {error}"))

"""Processes of this machine that share the steps of a run: small policies train faster in processes than in threads.

The operations of a small network are too short to be shared by threads, which wait for each other thousands of times a step; on a
busy machine they wait for the one that was sent to sleep. Processes meet once a step. Weights and gradients are in memory that all
of them see: nothing is sent but the number of the step.

    this process:  step n → everybody    takes pieces until there are none    adds up gradients, optimizer
    a worker:      waits for a step      takes pieces until there are none    says what came of them

A worker that dies costs nothing but time: its pieces are computed again here. When this process dies, however that happens, the
workers find their pipes closed, and end.
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
from smolact.machine import leave_with_parent
from smolact.training.gradients import GradientPart, GradientWorker, split, split_evenly

logger = logging.getLogger(__name__)

PATIENCE = 120.0
"""Seconds after which a worker that has not said anything is given up."""


@dataclass(frozen=True)
class StepGradients:
    """What a step's processes made together; the gradients are where the parameters have them.

    Attributes:
        loss, entries: summed, as tensors ().
        unreadable: frames that could not be read.
        waited: seconds that this process spent on reading.
        busy: the share of its own time that this process was given by the system.
    """

    loss: Tensor
    entries: Tensor
    unreadable: list[Unreadable]
    waited: float
    busy: float


class WorkQueue:
    """Who computes which piece of the present step: each is taken once.

    Args:
        context: of the processes.
        most: pieces of a step, at most.
    """

    def __init__(self, context: Any, most: int) -> None:
        self._lock = context.Lock()
        self._state = context.RawArray("q", 3 + most)  # the step, its pieces, the next one, and who took each

    def begin(self, step: int, number: int) -> None:
        """The pieces of a step are free."""
        with self._locked():
            self._state[0], self._state[1], self._state[2] = step, number, 0

    def take(self, step: int, who: int) -> Iterator[int]:
        """Pieces of a step, one after the other, until none is free or another step has begun."""
        while True:
            with self._locked():
                piece = self._state[2]
                if self._state[0] != step or piece == self._state[1]:
                    return
                self._state[2], self._state[3 + piece] = piece + 1, who
            yield piece

    def owner(self, piece: int) -> int:
        """Who took it."""
        return int(self._state[3 + piece])

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        if not self._lock.acquire(timeout=PATIENCE):
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
    is_gone: bool = False


@dataclass
class WorkerPool:
    """This process and those that help it. `active` of them share the next step.

    Args:
        learner: computes gradients.
        count: samples of a step.
        most: pieces of a step, at most.

    Attributes:
        number: into how many pieces the next step is cut.
        active: how many processes take part, this one included; those that are not ready yet do not.
    """

    learner: GradientWorker
    count: int
    most: int
    number: int = 1
    active: int = 1
    _workers: list[_Worker] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Put the weights where other processes see them."""
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
        """How many processes could take part, this one included."""
        for worker in self._workers:
            if not worker.is_ready and not worker.is_gone and worker.pipe.poll():
                self._hear(worker)
        return 1 + sum(worker.is_ready and not worker.is_gone for worker in self._workers)

    @property
    def started(self) -> int:
        """How many processes there are or will be, this one included."""
        return 1 + sum(not worker.is_gone for worker in self._workers)

    def start(self, number: int) -> None:
        """See that there are so many processes, this one included; new ones take some seconds to be ready."""
        while self.started < number:
            ours, theirs = self._context.Pipe()
            process = self._context.Process(
                target=_work,
                args=(self.count, self._slots, self._claims, theirs, 1 + len(self._workers)),
                name=f"smolact training {1 + len(self._workers)}",
                daemon=True,
            )
            process.start()
            theirs.close()
            # The process takes it when it has loaded what it needs, for which no step waits.
            learner = bytes(ForkingPickler.dumps(self.learner))
            threading.Thread(target=_send, args=(ours, learner), daemon=True).start()
            self._workers.append(_Worker(process, ours, 1 + len(self._workers)))

    def gradients(self, first: int) -> StepGradients:
        """The gradients of the samples from place `first` of the stream, in the parameters.

        Raises:
            SmolactError: what reading a sample raised, in whichever process.
        """
        if self._threads is None:
            self._threads = torch.get_num_threads()
            torch.set_num_threads(1)  # a piece is computed by one thread, whoever computes it
        self._step += 1
        pieces: dict[int, GradientPart] = {}
        self._claims.begin(self._step, self.number)
        self.ready  # noqa: B018, looks for workers that have become ready
        active = [worker for worker in self._workers if worker.is_ready and not worker.is_gone]
        active = active[: self.active - 1]
        for worker in active:
            self._send(worker, (self._step, first, self.number))
        for number in self._claims.take(self._step, 0):
            pieces[number] = self._compute(number, first)
        mine = list(pieces.values())
        heard = time.monotonic()
        while missing := [number for number in range(self.number) if number not in pieces]:
            owners = {self._claims.owner(number) for number in missing}
            waited_for = [worker for worker in active if worker.number in owners and not worker.is_gone]
            for number in missing:  # of workers that are dead
                if all(worker.number != self._claims.owner(number) for worker in waited_for):
                    pieces[number] = self._compute(number, first)
            if not waited_for:
                continue
            told = wait([worker.pipe for worker in waited_for], timeout=1.0)
            for worker in waited_for:
                if worker.pipe in told:
                    heard = time.monotonic()
                    answer = self._hear(worker)
                    if answer is not None and answer[0] == self._step:
                        pieces[answer[1]] = answer[2]
                elif time.monotonic() - heard > PATIENCE:
                    self._give_up(worker, f"has not answered for {PATIENCE:.0f} s")
        return self._together([pieces[number] for number in range(self.number)], mine)

    def close(self) -> None:
        """End the others."""
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
        places = _places(self.count, self.number, number, first)
        return self.learner.gradients(places, self._slots[number])

    def _together(self, pieces: Sequence[GradientPart], mine: Sequence[GradientPart]) -> StepGradients:
        """Add up what the pieces gave, in their order."""
        trained = self.learner.trained
        reached = [any(flags) for flags in zip(*(piece.has_gradient for piece in pieces), strict=True)]
        slots = self._slots[: self.number]
        for piece, slot in zip(pieces, slots, strict=True):
            if not all(piece.has_gradient):
                for part, has_gradient in zip(split(slot, trained), piece.has_gradient, strict=True):
                    if not has_gradient:
                        part.zero_()
        total = slots.sum(0)  # one thread adds them up in the order of the pieces
        for parameter, part, is_reached in zip(trained, split(total, trained), reached, strict=True):
            parameter.grad = part if is_reached else None
        seconds = sum(piece.seconds for piece in mine)
        return StepGradients(
            torch.tensor(sum(piece.loss for piece in pieces)),
            torch.tensor(sum(piece.entries for piece in pieces)),
            [one for piece in pieces for one in piece.unreadable],
            sum(piece.waited for piece in mine),
            sum(piece.busy for piece in mine) / seconds if seconds else 1.0,
        )

    def _send(self, worker: _Worker, message: Any) -> None:
        try:
            worker.pipe.send(message)
        except OSError:
            self._give_up(worker, "has ended")

    def _hear(self, worker: _Worker) -> tuple[int, int, GradientPart] | None:
        """What a worker says; None if that is that it is ready, or nothing any more.

        Raises:
            SmolactError: what it raised.
        """
        try:
            answer = worker.pipe.recv()
        except (EOFError, OSError):
            self._give_up(worker, "has ended")
            return None
        if isinstance(answer, BaseException):
            raise answer
        if answer is None:
            worker.is_ready = True
            return None
        step, number, piece = answer
        return step, number, piece

    def _give_up(self, worker: _Worker, why: str) -> None:
        worker.is_gone = True
        with contextlib.suppress(OSError):
            worker.process.kill()
        logger.warning("A process that trains (%s) %s; the others go on without it.", worker.process.pid, why)


def _places(count: int, number: int, piece: int, first: int) -> range:
    """The places of one of `number` pieces of the step that begins at `first`."""
    found = split_evenly(count, number)[piece]
    return range(first + found.start, first + found.stop)


def _send(pipe: Connection, learner: bytes) -> None:
    with contextlib.suppress(OSError):  # the process is gone, which is noticed when it is waited for
        pipe.send_bytes(learner)


def _work(
    count: int,
    slots: Tensor,
    claims: WorkQueue,
    pipe: Connection,
    who: int,
) -> None:
    """What a worker does until its pipe is closed."""
    leave_with_parent()
    torch.set_num_threads(1)
    with contextlib.suppress(EOFError, OSError):
        learner: GradientWorker = pipe.recv()
        learner.policy.train()
        pipe.send(None)
        while True:
            step, first, number = pipe.recv()
            try:
                for piece in claims.take(step, who):
                    places = _places(count, number, piece, first)
                    pipe.send((step, piece, learner.gradients(places, slots[piece])))
            except SmolactError as error:
                pipe.send(error)
            except (OSError, EOFError):
                raise
            except Exception as error:
                pipe.send(TrainingError(f"A process that trains failed: {type(error).__name__}: {error}"))

"""How many processes share a step: found by trying, and again when the machine has become slower.

A run begins alone at once. If it will last, others are started beside it, and each number of processes that makes sense trains for
some seconds: all of it counts, since a step is the same whoever computes it. When the rate falls by a third, because something
else runs on the machine, they are tried again, also more of them than there are cores: a busy system shares its time out by the
process.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from accelerate import Accelerator

from smolact.errors import ConfigError
from smolact.machine import SMALL, check_main_guard, cores
from smolact.training.budget import Budget
from smolact.training.config import TrainConfig
from smolact.training.data import TrainDataset
from smolact.training.facts import samples_per_step
from smolact.training.gradients import MIN_PART_SAMPLES, GradientWorker, default_part_count, max_part_count
from smolact.training.initialization import PolicyBundle
from smolact.training.worker_pool import StepGradients, WorkerPool

logger = logging.getLogger(__name__)

TURN_S, TURN_STEPS, ROUNDS = 1.0, 2, 3
"""Each number of processes is tried for so many seconds and steps at least, turn by turn, in so many rounds."""
AGAIN_S = 60.0
"""After so long the numbers are tried again, and then after twice as long: a machine changes."""
WATCHED_S = 10.0
"""How long a rate is watched before it is compared with the best one."""
FALL = 2 / 3
"""Of the rate; below it the numbers are tried again."""
WORTH_S = 20.0
"""Seconds left below which no processes are started."""
SHARED_MEMORY = Path("/dev/shm")
BUSY = 0.85
"""Who is given less of its time by the system than this is not alone on the machine."""


@dataclass
class _Window:
    """Steps, and the seconds that they took."""

    steps: int = 0
    seconds: float = 0.0
    busy: float = 0.0

    def add(self, seconds: float, busy: float) -> None:
        self.steps, self.seconds, self.busy = self.steps + 1, self.seconds + seconds, self.busy + busy

    @property
    def rate(self) -> float:
        """Steps a second."""
        return self.steps / self.seconds if self.seconds else 0.0

    @property
    def is_busy(self) -> bool:
        """Whether something else kept the system from this process."""
        return self.steps > 0 and self.busy / self.steps < BUSY


@dataclass
class AdaptiveWorkers:
    """Steps that processes share, as many as are fastest.

    Args:
        workers: the processes.
        samples: of a step.
        most: processes at most, this one included: as many as may help on a machine with nothing else to do.
        is_fixed: always take `most`.
        is_exact: cut each step alike, so that the run is the same whatever is tried. Otherwise into a piece for each process: larger
            pieces cost less for each sample.
        seconds_left: of the run; None while nobody knows.
    """

    workers: WorkerPool
    samples: int
    most: int
    is_fixed: bool = False
    is_exact: bool = True
    seconds_left: Callable[[], float | None] = lambda: None
    rates: dict[int, float] = field(default_factory=dict)
    """Samples a second with each number of processes that was tried last."""
    _windows: dict[int, _Window] = field(default_factory=lambda: {1: _Window()})
    _rounds: int = 1
    _turn: _Window = field(default_factory=_Window)
    _watched: _Window = field(default_factory=_Window)
    _last: float | None = None
    _rests: int = 0
    _is_settled: bool = False
    _told: int = 0
    _again_s: float = AGAIN_S
    _since_s: float = 0.0

    def gradients(self, first: int) -> StepGradients:
        """The gradients of the step that begins at place `first` of the stream. Raises as `WorkerPool.gradients` does."""
        if self.is_fixed and self.workers.started < self.most:
            self.workers.start(self.most)
            self.workers.active = self.most
        made = self.workers.gradients(first)
        now = time.perf_counter()
        if self._last is not None and not self.is_fixed:
            self._note(now - self._last, made.busy)
        self._last = now
        return made

    @property
    def description(self) -> str:
        """Where and how it is computed, for a person."""
        if self.most == 1:
            return "cpu, in one process of one thread"
        number = f"{self.most} processes" if self.is_fixed else f"up to {2 * self.most} processes"
        return f"cpu, {number} of one thread share each step and read their own samples"

    def pause(self) -> None:
        """What comes now is no step: an evaluation, a checkpoint."""
        self._last = None

    def close(self) -> None:
        """End the other processes."""
        self.workers.close()

    @property
    def _is_short(self) -> bool:
        """Whether what is left of the run is not worth a trial."""
        left = self.seconds_left()
        return left is not None and left < WORTH_S

    def _note(self, seconds: float, busy: float) -> None:
        """A step took so long."""
        if self._rests:
            self._rests -= 1
        elif self._is_settled:
            self._watch(seconds, busy)
        elif (
            self.workers.started == self.workers.ready
        ):  # while some are starting, they take time that is no step's
            self._try(seconds, busy)

    def _try(self, seconds: float, busy: float) -> None:
        """Numbers take turns, so that a moment in which the machine is busy meets all of them alike."""
        number = self.workers.active
        self._windows[number].add(seconds, busy)
        self._turn.add(seconds, busy)
        if self._turn.seconds < TURN_S or self._turn.steps < TURN_STEPS:
            return
        numbers = list(self._windows)
        place = numbers.index(number) + 1
        if place == len(numbers):
            place, self._rounds = 0, self._rounds - 1
        if self._rounds:
            self._turn_to(numbers[place])
        elif len(numbers) == 1 and not self._is_settled and not self._told and not self._is_short:
            self._told = 1
            self._begin_trial()
        else:
            self._settle()

    def _begin_trial(self) -> None:
        """Try one process, as many as there are cores, and on a busy machine more: the system shares its time out by the process."""
        is_busy = any(window.is_busy for window in (*self._windows.values(), self._watched))
        most = self.most * (2 if is_busy and self.most > 1 else 1)
        numbers = sorted({1, *(min(number, self.workers.most) for number in (self.most, most))})
        self.workers.start(numbers[-1])
        self._windows = {number: _Window() for number in numbers}
        self._rounds, self._is_settled = ROUNDS, False
        self._turn_to(numbers[0])

    def _turn_to(self, number: int) -> None:
        self.workers.active, self._turn, self._rests = number, _Window(), 1
        if not self.is_exact:
            self.workers.number = number

    def _settle(self) -> None:
        self.rates = {number: window.rate * self.samples for number, window in self._windows.items()}
        best = max(self.rates, key=lambda number: self.rates[number])
        if best != self._told or self._told == 1:
            others = ", ".join(
                f"{number}: {rate:.0f}" for number, rate in self.rates.items() if number != best
            )
            if others:
                logger.info(
                    "Training in %d process%s of one thread: %.0f samples/s (%s).",
                    best,
                    "es" * (best > 1),
                    self.rates[best],
                    others,
                )
        self._told, self._is_settled, self._watched = best, True, _Window()
        self._since_s = 0.0
        self._turn_to(best)

    def _watch(self, seconds: float, busy: float) -> None:
        """Whether the rate is still that of the choice, and whether another one may be better by now."""
        self._watched.add(seconds, busy)
        if self._watched.seconds < WATCHED_S:
            return
        number, rate = self.workers.active, self._watched.rate * self.samples
        self._since_s += self._watched.seconds
        has_fallen = rate < FALL * self.rates[number]
        self.rates[number] = max(rate, self.rates[number])
        if (has_fallen or self._since_s > self._again_s) and not self._is_short:
            self._again_s *= 1 if has_fallen else 2
            self._begin_trial()
        self._watched = _Window()


def adaptive_workers(
    config: TrainConfig,
    seed: int,
    start: PolicyBundle,
    samples: TrainDataset,
    accelerator: Accelerator,
    budget: Budget,
) -> AdaptiveWorkers | None:
    """How processes share the steps; None where one process does all of it.

    Raises:
        ConfigError: `--cpu_processes` asks for what can't be.
    """
    asked, count = config.cpu_processes, samples_per_step(config, accelerator)
    if asked == 1:
        return None
    trained = sum(parameter.numel() for parameter in start.policy.parameters() if parameter.requires_grad)
    is_exact = config.train_minutes is None
    usual, most_processes = default_part_count(count, asked or cores()), asked or 2 * cores()
    most = usual if is_exact else min(most_processes, max_part_count(count))
    needed = 4 * (sum(parameter.numel() for parameter in start.policy.parameters()) + most * trained)
    why_not = (
        f"the policy trains on '{accelerator.device.type}'"
        if accelerator.device.type != "cpu"
        else "accelerate or torchrun started the processes of this run"
        if accelerator.num_processes > 1
        else f"a step of {count} samples is work for {most} at most, with {MIN_PART_SAMPLES} samples each"
        if most < (asked or 2)
        else f"{SHARED_MEMORY} has no room for {needed / 1e6:.0f} MB of weights and gradients (in a container: --shm-size)"
        if needed > _shared_memory_left()
        else None
    )
    if why_not is not None and asked is not None:
        raise ConfigError(f"--cpu_processes={asked} can't be: {why_not}. Leave it out.")
    if why_not is not None or (asked is None and trained > SMALL):
        return None
    processes = asked or cores()
    try:
        check_main_guard()
    except ConfigError as error:
        if asked is not None:
            raise
        logger.info("One process trains. %s", error)
        processes = 1
    in_bfloat16 = accelerator.mixed_precision == "bf16"
    learner = GradientWorker(start.policy, start.preprocess, samples, seed, config.batch_size, in_bfloat16)
    number = usual if is_exact else min(asked or 1, most)
    return AdaptiveWorkers(
        WorkerPool(learner, count, most, number),
        count,
        processes,
        is_fixed=asked is not None,
        is_exact=is_exact,
        seconds_left=lambda: budget.seconds_left,
    )


def _shared_memory_left() -> float:
    return shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else float("inf")

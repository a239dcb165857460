"""The number of processes that share a step, chosen by trial.

A run starts in one process. If it will last, others are started, and each sensible number trains for some seconds; a step's
result does not depend on it. When other load slows the run by a third, the trial is repeated, also with more processes than
cores: a busy system shares its time by process.
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
"""Minimum seconds and steps of one measurement, and rounds, in which the numbers of processes take turns."""
RETRY_S = 60.0
"""Seconds until the trial is repeated, doubled each time."""
WATCHED_S = 10.0
"""Seconds of measurement before the rate is compared with the best one."""
MIN_RATE_SHARE = 2 / 3
"""Share of the best rate below which the trial is repeated."""
WORTH_S = 20.0
"""Minimum seconds left in the run for starting processes."""
SHARED_MEMORY = Path("/dev/shm")
MIN_CPU_SHARE = 0.85
"""A smaller share of CPU time shows that other load is on the machine."""


@dataclass
class _Window:
    """Steps and their duration in seconds."""

    steps: int = 0
    seconds: float = 0.0
    busy: float = 0.0

    def add(self, seconds: float, busy: float) -> None:
        self.steps, self.seconds, self.busy = self.steps + 1, self.seconds + seconds, self.busy + busy

    @property
    def rate(self) -> float:
        """Steps per second."""
        return self.steps / self.seconds if self.seconds else 0.0

    @property
    def is_busy(self) -> bool:
        """Whether other load took CPU time from this process."""
        return self.steps > 0 and self.busy / self.steps < MIN_CPU_SHARE


@dataclass
class AdaptiveWorkers:
    """Steps shared by as many processes as are fastest.

    Args:
        most: processes, with this one, that are useful on an idle machine.
        is_fixed: always use `most`.
        is_exact: split each step into the same pieces, so that the run does not depend on the trials. Otherwise each process gets
            one piece: larger pieces cost less per sample.
        seconds_left: of the run; None while unknown.
    """

    workers: WorkerPool
    samples: int
    most: int
    is_fixed: bool = False
    is_exact: bool = True
    seconds_left: Callable[[], float | None] = lambda: None
    rates: dict[int, float] = field(default_factory=dict)
    """Samples per second of each number of processes in the last trial."""
    _windows: dict[int, _Window] = field(default_factory=lambda: {1: _Window()})
    _rounds: int = 1
    _measurement: _Window = field(default_factory=_Window)
    _current: _Window = field(default_factory=_Window)
    _last: float | None = None
    _skipped_steps: int = 0
    _is_settled: bool = False
    _chosen: int = 0
    _retry_s: float = RETRY_S
    _since_trial_s: float = 0.0

    def gradients(self, first: int) -> StepGradients:
        """Compute the gradients of the step at stream position `first`. Raises as `WorkerPool.gradients` does."""
        if self.is_fixed and self.workers.started < self.most:
            self.workers.start(self.most)
            self.workers.active = self.most
        result = self.workers.gradients(first)
        now = time.perf_counter()
        if self._last is not None and not self.is_fixed:
            self._record_step(now - self._last, result.busy)
        self._last = now
        return result

    @property
    def description(self) -> str:
        """The device and the number of processes, for the user."""
        if self.most == 1:
            return "cpu, in one process of one thread"
        number = f"{self.most} processes" if self.is_fixed else f"up to {2 * self.most} processes"
        return f"cpu, {number} of one thread share each step and read their own samples"

    def pause(self) -> None:
        """Exclude the time until the next step, such as an evaluation or a checkpoint."""
        self._last = None

    def close(self) -> None:
        """Stop the workers."""
        self.workers.close()

    @property
    def _is_short(self) -> bool:
        """Whether too little of the run is left for a trial."""
        seconds = self.seconds_left()
        return seconds is not None and seconds < WORTH_S

    def _record_step(self, seconds: float, busy: float) -> None:
        """Record the duration of a step."""
        if self._skipped_steps:
            self._skipped_steps -= 1
        elif self._is_settled:
            self._watch(seconds, busy)
        elif self.workers.started == self.workers.ready:  # starting processes slow the steps down
            self._try(seconds, busy)

    def _try(self, seconds: float, busy: float) -> None:
        """Measure the numbers of processes in turns, so that other load affects all of them alike."""
        number = self.workers.active
        self._windows[number].add(seconds, busy)
        self._measurement.add(seconds, busy)
        if self._measurement.seconds < TURN_S or self._measurement.steps < TURN_STEPS:
            return
        numbers = list(self._windows)
        index = numbers.index(number) + 1
        if index == len(numbers):
            index, self._rounds = 0, self._rounds - 1
        if self._rounds:
            self._switch_to(numbers[index])
        elif len(numbers) == 1 and not self._is_settled and not self._chosen and not self._is_short:
            self._chosen = 1
            self._begin_trial()
        else:
            self._settle()

    def _begin_trial(self) -> None:
        """Try one process, one per core, and on a busy machine two per core."""
        is_busy = any(window.is_busy for window in (*self._windows.values(), self._current))
        most = self.most * (2 if is_busy and self.most > 1 else 1)
        numbers = sorted({1, *(min(number, self.workers.most) for number in (self.most, most))})
        self.workers.start(numbers[-1])
        self._windows = {number: _Window() for number in numbers}
        self._rounds, self._is_settled = ROUNDS, False
        self._switch_to(numbers[0])

    def _switch_to(self, number: int) -> None:
        self.workers.active, self._measurement, self._skipped_steps = number, _Window(), 1
        if not self.is_exact:
            self.workers.number = number

    def _settle(self) -> None:
        self.rates = {number: window.rate * self.samples for number, window in self._windows.items()}
        best = max(self.rates, key=lambda number: self.rates[number])
        if best != self._chosen or self._chosen == 1:
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
        self._chosen, self._is_settled, self._current = best, True, _Window()
        self._since_trial_s = 0.0
        self._switch_to(best)

    def _watch(self, seconds: float, busy: float) -> None:
        """Begin a trial if the rate has fallen, or if the last trial is old."""
        self._current.add(seconds, busy)
        if self._current.seconds < WATCHED_S:
            return
        number, rate = self.workers.active, self._current.rate * self.samples
        self._since_trial_s += self._current.seconds
        has_fallen = rate < MIN_RATE_SHARE * self.rates[number]
        self.rates[number] = max(rate, self.rates[number])
        if (has_fallen or self._since_trial_s > self._retry_s) and not self._is_short:
            self._retry_s *= 1 if has_fallen else 2
            self._begin_trial()
        self._current = _Window()


def adaptive_workers(
    config: TrainConfig,
    seed: int,
    start: PolicyBundle,
    samples: TrainDataset,
    accelerator: Accelerator,
    budget: Budget,
) -> AdaptiveWorkers | None:
    """Return the processes that share the steps; None where one process computes them.

    Raises:
        ConfigError: `--cpu_processes` is impossible here.
    """
    requested, count = config.cpu_processes, samples_per_step(config, accelerator)
    if requested == 1:
        return None
    trained = sum(parameter.numel() for parameter in start.policy.parameters() if parameter.requires_grad)
    is_exact = config.train_minutes is None
    default_parts, most_processes = default_part_count(count, requested or cores()), requested or 2 * cores()
    most = default_parts if is_exact else min(most_processes, max_part_count(count))
    needed = 4 * (sum(parameter.numel() for parameter in start.policy.parameters()) + most * trained)
    obstacle = (
        f"the policy trains on '{accelerator.device.type}'"
        if accelerator.device.type != "cpu"
        else "accelerate or torchrun started the processes of this run"
        if accelerator.num_processes > 1
        else f"a step of {count} samples is work for {most} at most, with {MIN_PART_SAMPLES} samples each"
        if most < (requested or 2)
        else f"{SHARED_MEMORY} has no room for {needed / 1e6:.0f} MB of weights and gradients (in a container: --shm-size)"
        if needed > _shared_memory_left()
        else None
    )
    if obstacle is not None and requested is not None:
        raise ConfigError(f"--cpu_processes={requested} can't be: {obstacle}. Leave it out.")
    if obstacle is not None or (requested is None and trained > SMALL):
        return None
    processes = requested or cores()
    try:
        check_main_guard()
    except ConfigError as error:
        if requested is not None:
            raise
        logger.info("One process trains. %s", error)
        processes = 1
    in_bfloat16 = accelerator.mixed_precision == "bf16"
    learner = GradientWorker(start.policy, start.preprocess, samples, seed, config.batch_size, in_bfloat16)
    number = default_parts if is_exact else min(requested or 1, most)
    return AdaptiveWorkers(
        WorkerPool(learner, count, most, number),
        count,
        processes,
        is_fixed=requested is not None,
        is_exact=is_exact,
        seconds_left=lambda: budget.seconds_left,
    )


def _shared_memory_left() -> float:
    return shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else float("inf")

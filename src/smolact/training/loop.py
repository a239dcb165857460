"""The training loop: gradient steps, with logging, validation, evaluation and checkpoints between them."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import Tensor, nn
from torch.autograd.profiler import record_function
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from smolact import durable
from smolact.datasets.unreadable import Unreadable
from smolact.errors import DatasetError
from smolact.policies.base import PreTrainedPolicy
from smolact.policies.configuration import TRAIN_CONFIG
from smolact.training.adaptive_workers import AdaptiveWorkers
from smolact.training.bad_samples import BadSamples, gather_unreadable
from smolact.training.bad_steps import bad_steps_error
from smolact.training.budget import Budget
from smolact.training.checkpoint import Progress, save_checkpoint
from smolact.training.config import DEFAULT_LOG_FREQ, LOG_POINTS, TrainConfig, with_steps_done
from smolact.training.data import UNREADABLE, TrainDataset, make_loader, next_batch, split_noise
from smolact.training.devices import all_reduce_sum
from smolact.training.ema import ExponentialMovingAverage
from smolact.training.env_evaluation import evaluate_in_environment, rates_of
from smolact.training.facts import samples_per_step
from smolact.training.initialization import PolicyBundle
from smolact.training.meter import Meter
from smolact.training.provenance import Provenance
from smolact.training.run_folder import checkpoint_folder, prune_checkpoints
from smolact.training.sharding import ShardedPolicy
from smolact.training.signals import Stopped, StopRequest, stop_signals
from smolact.training.tracking import (
    Ended,
    Evaluated,
    Event,
    Failed,
    Listener,
    Measured,
    Saved,
    Stepped,
)
from smolact.training.validation import Validation
from smolact.types import Batch

logger = logging.getLogger(__name__)

SKIPS_BAD_STEPS = ("cpu", "cuda")
"""Device types whose fused AdamW skips the update where its `found_inf` is 1, without synchronizing with the device."""


@dataclass
class Trainer:
    """A prepared training run; `run_to_end` trains.

    `train` makes all of its parts. Construct it directly to bring your own policy, dataset or optimizer.
    """

    config: TrainConfig
    given: Mapping[str, Any]
    """The settings as they were given, by dotted name."""
    settings: Mapping[str, Any]
    """The content of `train_config.json`."""
    run: Path
    seed: int
    accelerator: Accelerator
    start: PolicyBundle
    samples: TrainDataset
    optimizer: Optimizer
    scheduler: LambdaLR
    clip_norm: float
    progress: Progress
    listeners: Sequence[Listener]
    provenance: Provenance | None = None
    """Written with each saved policy."""
    sharded: ShardedPolicy | None = None
    """The sharded policy, where the weights are split over processes."""
    validation: Validation | None = None
    ema: ExponentialMovingAverage | None = None
    bad_samples: BadSamples = field(default_factory=BadSamples)
    budget: Budget | None = None
    """The length of the run; taken from `config` when None."""
    shared: AdaptiveWorkers | None = None
    """The local processes that share each step of a small policy on a CPU."""

    def __post_init__(self) -> None:
        policy = self.start.policy
        if self.budget is None:
            self.budget = Budget.of(self.config)
            self.budget.resume(self.progress.step, self.progress.seconds, self.progress.lead)
        adapters = policy.adapters
        if adapters and (adapters.full or adapters.config.target_modules != policy.adapter_targets):
            # Layers that the loss does not need get no gradients, for which processes would wait forever.
            self.accelerator.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=True)
        self._model: nn.Module = policy if self.sharded else self.accelerator.prepare_model(policy)

    def run_to_end(self) -> Ended:
        """Train until the budget is spent, or until SIGINT or SIGTERM: the current step is then finished and saved.

        A signal interrupts waiting for data, a validation and an evaluation at once.

        Raises:
            TrainingError: too many consecutive steps were not finite, or too many frames unreadable.
        """
        try:
            return self._run_to_end()
        except Exception as error:
            self.emit(Failed(self.step, str(error)))
            raise
        finally:
            if self.shared is not None:
                self.shared.close()

    @property
    def step(self) -> int:
        """The last finished step."""
        return self._budget.step

    @property
    def _budget(self) -> Budget:
        assert self.budget is not None  # set by __post_init__
        return self.budget

    def _run_to_end(self) -> Ended:
        config, budget = self.config, self._budget
        batches = iter(self._loader()) if self.shared is None else iter(())
        self._model.train()
        meter = Meter(self.samples_per_step)
        checkpoint: Path | None = None
        self._saved = self.progress.step
        budget.begin(self._agreed_seconds())
        measured, log_freq = budget.share, config.log_freq or DEFAULT_LOG_FREQ
        with stop_signals() as stop:
            stops = False
            while not budget.is_over and not stops:
                try:
                    loss, norm, waited, stops = self._step_or_save(batches, stop)
                except Stopped:  # before the batch was loaded: the step has not begun
                    self.optimizer.zero_grad(set_to_none=True)
                    if self.step == self.progress.step:
                        checkpoint = checkpoint_folder(self.run, self.step) if self.step else None
                    elif config.save_checkpoint and self.step > self._saved:
                        checkpoint = self._save(self.step)
                    break
                step = self.step
                meter.add(step, loss, norm, waited)
                self.emit(Stepped(step, budget.seconds_left))
                if self.accelerator.num_processes == 1:  # several processes agree in the next step
                    stops = bool(stop)
                stops = stops or self.bad_samples.is_over
                is_last = budget.is_over or stops
                saves = config.save_checkpoint and (is_last or _is_due(step, config.save_freq))
                validates = self.validation is not None and (_is_due(step, config.eval_steps) or is_last)
                measures = step % log_freq == 0 or saves or validates or is_last
                if config.train_minutes is not None:
                    measures = measures or budget.share - measured > 1 / LOG_POINTS
                # Reading a loss synchronizes with the device, which costs nothing on a CPU.
                if measures or self.accelerator.device.type == "cpu":
                    self._check_finite(meter)
                if measures:
                    measured = budget.share
                    metrics = meter.read(max(group["lr"] for group in self.optimizer.param_groups))
                    if config.train_minutes is not None:
                        metrics["seconds"] = round(budget.seconds, 2)
                    if len(self.bad_samples):
                        metrics["bad_samples"] = len(self.bad_samples)
                    if validates and not stops:
                        metrics |= self._validate(stop)
                        if self.validation is not None:
                            self.bad_samples.add(self.validation.unreadable, step)
                        self._pause(meter)
                    self.emit(Measured(step, metrics))
                if config.env.type is not None and (_is_due(step, config.eval_freq) and not stops):
                    self._evaluate(step, stop)
                    self._pause(meter)
                if saves:
                    checkpoint = self._save(step)
                    self._pause(meter)
        if self.bad_samples.is_over and not budget.is_over:
            raise self.bad_samples.error(self.step, checkpoint)
        self.bad_samples.note()
        ended = Ended(self.step, checkpoint, budget.is_over, meter.data_wait, bool(stop), self.shared is None)
        self.emit(ended)
        return ended

    def _loader(self) -> Iterable[Batch]:
        return make_loader(
            self.samples,
            self.config,
            start=self.progress.samples,
            pin_memory=self.accelerator.device.type == "cuda",
            rank=self.accelerator.process_index,
            processes=self.accelerator.num_processes,
        )

    def _pause(self, meter: Meter) -> None:
        """Exclude the time since the last step from the training time."""
        meter.restart_clock()
        if self.shared is not None:
            self.shared.pause()

    @property
    def samples_per_step(self) -> int:
        """The global batch size."""
        return samples_per_step(self.config, self.accelerator)

    def emit(self, event: Event) -> None:
        """Send an event to every listener, from the main process only."""
        if self.accelerator.is_main_process:
            for listener in self.listeners:
                listener(event)

    def _averaged(self) -> contextlib.AbstractContextManager[None]:
        """A context in which the policy has its averaged weights, if the run has a moving average."""
        return contextlib.nullcontext() if self.ema is None else self.ema.swapped(self.start.policy)

    def _step_or_save(
        self, batches: Iterator[Batch], stop: StopRequest
    ) -> tuple[Tensor, Tensor, float, bool]:
        """Run `_step`, and save the last finished step if the dataset can no longer be read."""
        try:
            return self._step(batches, stop)
        except DatasetError:
            is_first = self.step == self.progress.step
            is_single = self.accelerator.num_processes == 1  # saving waits for all processes
            if self.config.save_checkpoint and not is_first and is_single and self.step > self._saved:
                self.optimizer.zero_grad(set_to_none=True)
                self._save(self.step)
            raise

    def _step(self, batches: Iterator[Batch], stop: StopRequest) -> tuple[Tensor, Tensor, float, bool]:
        """Run one step; return global loss and gradient norm (on the device), seconds of waiting, and whether to stop.

        The loss is the mean over the valid entries of the whole global batch. Their number is known only after the last forward
        pass, so gradients of sums are accumulated and divided then: one process with a large batch, several with smaller ones,
        and accumulated batches give the same result.

        Raises:
            Stopped: a signal came before the batch was loaded. Several processes finish the step, and agree in it.
        """
        if self.shared is not None:
            return self._shared_step(self.shared)
        device, parts = self.accelerator.device, self.config.gradient_accumulation_steps
        totals = torch.zeros(5, device=device)
        waited = 0.0
        unreadable: list[Unreadable] = []
        for part in range(parts):
            waiting = time.perf_counter()
            with record_function("data"), stop.interruptible(self.accelerator.num_processes == 1):
                batch, drawn = split_noise(next_batch(batches))
                waited += time.perf_counter() - waiting
                unreadable += batch.pop(UNREADABLE, ())
            with record_function("preprocess"):
                inputs = self.start.preprocess(batch)
                arguments = {name: value.to(device, non_blocking=True) for name, value in drawn.items()}
            is_last = part == parts - 1
            with self._gradient_sync(is_last):
                with record_function("forward"), self.accelerator.autocast():
                    loss, counted = self._model(inputs, **arguments, reduction="sum")
                with record_function("backward"):
                    loss.backward()
            totals[:2] += torch.stack((loss.detach().float(), counted["entries"].float()))
        stops, seconds = False, self._budget.now()
        if self.accelerator.num_processes > 1:
            totals[2] += bool(stop)  # signals come at different steps, all processes stop at the same
            totals[3] += len(unreadable)
            totals[4] += seconds if self.accelerator.is_main_process else 0.0
            totals = all_reduce_sum(self.accelerator, totals)
            if self.config.train_minutes is not None:
                seconds = float(totals[4])
            stops, is_bad = (totals[2:4] > 0).tolist()
            if is_bad:
                unreadable = gather_unreadable(self.accelerator, unreadable)
        self.bad_samples.add(unreadable, self.step + 1, is_first=self.step == 0)
        with record_function("optimizer"):
            mean, norm = self._update(totals[0], totals[1].clamp_min(1), seconds)
        return mean, norm, waited, stops

    def _shared_step(self, shared: AdaptiveWorkers) -> tuple[Tensor, Tensor, float, bool]:
        """Run `_step` where several processes of this machine compute the gradients."""
        with record_function("gradients"):
            result = shared.gradients(self._first_position(self.step + 1))
        self.bad_samples.add(result.unreadable, self.step + 1, is_first=self.step == 0)
        with record_function("optimizer"):
            mean, norm = self._update(result.loss, result.entries.clamp_min(1), self._budget.now())
        return mean, norm, result.waited, False

    def _agreed_seconds(self) -> float:
        """Return the seconds spent, by the main process's clock."""
        seconds = self._budget.now() if self.accelerator.is_main_process else 0.0
        if self.accelerator.num_processes == 1 or self.config.train_minutes is None:
            return seconds
        return float(all_reduce_sum(self.accelerator, torch.tensor(seconds, device=self.accelerator.device)))

    def _update(self, loss: Tensor, entries: Tensor, seconds: float) -> tuple[Tensor, Tensor]:
        """Update the weights with the gradients of a summed loss; return its mean over `entries` and the gradient norm.

        The step is finished afterwards, with `seconds` of the budget spent.
        """
        gradients = [p.grad for p in self._model.parameters() if p.grad is not None]
        # Data parallelism has averaged the sums over the processes.
        torch._foreach_mul_(gradients, self.accelerator.num_processes / entries)
        largest = self.clip_norm if self.clip_norm > 0 else math.inf
        norm = nn.utils.clip_grad_norm_(self._model.parameters(), largest)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        mean = loss / entries
        is_bad = ~(torch.isfinite(norm) & torch.isfinite(mean))
        if self.accelerator.device.type in SKIPS_BAD_STEPS:
            self.optimizer.found_inf = is_bad.float()  # type: ignore[attr-defined]
            self.optimizer.step()
        elif not is_bad:  # synchronizes with the device
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update(self.start.policy)
        self._budget.spend(seconds)
        self.scheduler.step()
        return mean, norm

    @contextlib.contextmanager
    def _gradient_sync(self, reduces: bool) -> Iterator[None]:
        """A context whose backward pass reduces the gradients over all processes, or keeps them local."""
        if self.sharded is not None:
            self.sharded.set_gradient_sync(reduces)
            yield
        elif reduces:
            yield
        else:
            with self.accelerator.no_sync(self._model):
                yield

    def _full_state(self) -> tuple[PreTrainedPolicy, Optimizer]:
        """Return policy and optimizer with all weights, for the main process; every process must call it."""
        if self.sharded is None:
            return self.start.policy, self.optimizer
        return self.sharded.gather(self.optimizer, keep=self.accelerator.is_main_process)

    def _check_finite(self, meter: Meter) -> None:
        bad = meter.read_new(self.config.max_bad_steps)
        if bad:
            logger.warning(
                "Not finite, and left out: step %s (%d so far).", ", ".join(map(str, bad)), meter.bad_steps
            )
        if meter.bad_in_a_row >= self.config.max_bad_steps:
            raise bad_steps_error(
                self.samples,
                self._first_position(bad[-1]),
                self.samples_per_step,
                bad[-1],
                self.run,
                in_a_row=meter.bad_in_a_row,
                keep=self.accelerator.is_main_process,
            )

    def _first_position(self, step: int) -> int:
        """Return the stream position of the first sample of `step`."""
        return self.progress.samples + (step - 1 - self.progress.step) * self.samples_per_step

    def _progress(self, step: int) -> Progress:
        budget = self._budget
        position = self._first_position(step + 1)
        return Progress(step, position, self.config.batch_size, budget.now(), budget.lead)

    def _validate(self, stop: StopRequest) -> dict[str, float]:
        """Return the held-out loss as `validation_loss`; empty if a signal interrupted it."""
        assert self.validation is not None
        with self._averaged():
            loss = self.validation.loss(self.start, self.accelerator, lambda: bool(stop))
        return {} if loss is None else {"validation_loss": loss}

    def _evaluate(self, step: int, stop: StopRequest) -> None:
        policy, _ = self._full_state()
        if self.accelerator.is_main_process:
            with self._averaged(), contextlib.suppress(Stopped), stop.interruptible():
                result = evaluate_in_environment(
                    self.config,
                    self.start,
                    policy.to(self.accelerator.device.type),
                    device=self.accelerator.device,
                    seed=self.seed,
                    video_folder=self.run / "videos" / f"step_{step:06d}",
                )
                self.emit(Evaluated(step, rates_of(result), result))
        self.accelerator.wait_for_everyone()

    def _save(self, step: int) -> Path:
        policy, optimizer = self._full_state()
        if self.accelerator.is_main_process:
            save_checkpoint(
                self.run,
                self._progress(step),
                policy=policy,
                optimizer=optimizer,
                scheduler=self.scheduler,
                save_policy=partial(self._save_policy, policy),
                save_more=self._save_more,
                settings=self.given,
                processes=self.accelerator.num_processes,
            )
            prune_checkpoints(self.run, self.config.keep_last, self.config.keep_every)
        self.accelerator.wait_for_everyone()
        self._saved = step
        checkpoint = checkpoint_folder(self.run, step)
        self.emit(Saved(step, checkpoint))
        return checkpoint

    def _save_more(self, folder: Path) -> None:
        if self.ema is not None:
            self.ema.save(folder, policy=self.start.policy)
        if len(self.bad_samples):
            self.bad_samples.save(folder)

    def _save_policy(self, policy: PreTrainedPolicy, folder: Path) -> None:
        with self._averaged():
            policy.save_pretrained(folder)
        self.start.preprocess.save_pretrained(folder)
        self.start.postprocess.save_pretrained(folder)
        durable.write_json(folder / TRAIN_CONFIG, with_steps_done(self.settings, self.config, self.step))
        if self.provenance is not None:
            self.provenance.write(folder, self.step, self.config.policy.published_as)


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0

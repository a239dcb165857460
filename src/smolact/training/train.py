"""`train(config)` is `smolact train`, in order: settings, data, policy, optimizer, resume, loop, save.

What a run is made of is `run.Run`; `loop` is the order of events, `train_step` one step, `update` its last part.
"""

from __future__ import annotations

import contextlib
import datetime
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.autograd.profiler import record_function
from torch.distributed.tensor import DTensor

from smolact.datasets.unreadable import Unreadable
from smolact.errors import DatasetError
from smolact.training.adaptive_workers import AdaptiveWorkers, adaptive_workers
from smolact.training.bad_samples import BadSamples
from smolact.training.budget import Budget, is_spent
from smolact.training.cache import build_cache
from smolact.training.checkpoint import read_progress, read_schedule
from smolact.training.config import DEFAULT_LOG_FREQ, LOG_POINTS, TrainConfig, resolve, to_json
from smolact.training.data import UNREADABLE, held_out_samples, next_batch, split_noise, training_samples
from smolact.training.devices import make_accelerator, matmul_precision
from smolact.training.ema import ExponentialMovingAverage
from smolact.training.facts import facts_of_run
from smolact.training.meter import Meter
from smolact.training.optim import make_optimizer, make_scheduler, note_new_schedule, optimization_of
from smolact.training.preflight import check_disk, check_evaluation, match_table, note_prompts
from smolact.training.provenance import provenance_of
from smolact.training.publication import check_publication, publish_unless_stopped, report_complete
from smolact.training.random_state import seed_everything
from smolact.training.run import Run
from smolact.training.run_folder import (
    check_unused,
    checkpoint_folder,
    remove_begun,
    reserve,
    resolve_last,
    save_begun,
)
from smolact.training.run_inputs import agreed_seed, prepare_run, progress_callback, with_saved_names
from smolact.training.saved_settings import to_dict
from smolact.training.sections import policy_type_at
from smolact.training.sharding import ShardedPolicy, make_mesh
from smolact.training.signals import Stopped, StopRequest, stop_signals
from smolact.training.trackers import make_trackers
from smolact.training.tracking import Ended, Failed, Listener, Measured, MetricsFile, Started, Stepped
from smolact.training.validation import Validation
from smolact.types import Batch

SKIPS_BAD_STEPS = ("cpu", "cuda")
"""Device types whose fused AdamW skips the update where its `found_inf` is 1, without synchronizing with the device."""


def train(config: TrainConfig, *, listeners: Sequence[Listener] = ()) -> Ended:
    """Train a policy: `smolact train` without command line and display.

    Args:
        config: the settings; `TrainConfig.resume` returns those to resume a run with.
        listeners: receive every event, in this order.

    Returns:
        the end of the run: complete, or stopped by a signal, with a checkpoint to resume from.

    Raises:
        SmolactError: settings, dataset, weights or checkpoint are invalid, before the first step; `TrainingError` during
            training; `HubError` after the last step, when everything is saved, if publishing the policy failed.
    """
    began, checkpoint = time.monotonic(), config.checkpoint
    if checkpoint is None:
        config.check_complete()
        config = with_saved_names(config)
    given, config = to_dict(config), resolve(config)
    accelerator = make_accelerator(config)
    given["seed"] = seed = agreed_seed(config, accelerator)
    folder = _new_folder(config) if checkpoint is None else checkpoint.parent.parent
    with contextlib.ExitStack() as stack:
        if accelerator.is_main_process and config.check:
            if checkpoint is None:
                check_unused(folder, restart=config.begins_again)
        elif accelerator.is_main_process:
            stack.enter_context(reserve(folder, resumes=checkpoint is not None, restart=config.begins_again))
        if checkpoint is not None:
            checkpoint = resolve_last(checkpoint)
            progress = read_progress(checkpoint)
            if is_spent(config, progress.step, progress.seconds):
                ended = Ended(progress.step, checkpoint, is_complete=True)
                if accelerator.is_main_process:
                    report_complete(ended, config, listeners)
                return ended
        run = prepare(config, given, folder, seed, accelerator, checkpoint, listeners, began)
        if config.check:
            return Ended(run.step, None, is_complete=True)
        with matmul_precision(accelerator.device, "high"):
            ended = _train(run)
        if accelerator.is_main_process:
            if ended.checkpoint is not None or ended.is_complete:
                remove_begun(folder)
            publish_unless_stopped(ended, config)
    return ended


def prepare(
    config: TrainConfig,
    given: Mapping[str, Any],
    folder: Path,
    seed: int,
    accelerator: Accelerator,
    checkpoint: Path | None,
    listeners: Sequence[Listener],
    began: float,
) -> Run:
    """Make the parts of a run, check that they fit each other, and restore its state from a checkpoint.

    Raises:
        SmolactError: settings, dataset, weights or checkpoint are invalid.
    """
    is_main, is_timed = accelerator.is_main_process, config.train_minutes is not None
    seed_everything(seed)

    # Data and policy
    inputs = prepare_run(config, accelerator, checkpoint)
    start, progress, sources = inputs.start, inputs.progress, inputs.sources
    policy = start.policy
    check_evaluation(policy.config, config)
    note_prompts(start.preprocess, (task for source in sources for task in source.meta.tasks.values()))
    check_disk(folder, policy, config)
    if is_main:
        check_publication(config)
    optimizer_settings, schedule = optimization_of(policy.config, config)
    settings = to_json(config, policy.config, optimizer_settings, schedule)
    settings |= {"seed": seed, "output_dir": str(folder)}
    cached = None
    if not config.check:
        if checkpoint is None and is_main:
            save_begun(folder, given)
        report = progress_callback(listeners, accelerator)
        cached = build_cache(config, policy, sources, inputs.all_datasets, accelerator, report)

    # Optimizer and schedule
    if config.gradient_checkpointing:
        policy.recompute_activations()
    sharded = None
    if config.parallelism.splits:
        sharded = ShardedPolicy(policy, make_mesh(config.parallelism, accelerator))
    budget = Budget(config.n_steps, config.train_minutes, began)
    budget.resume(progress.step, progress.seconds, progress.lead)
    optimizer = make_optimizer(policy, optimizer_settings, config.lr_multipliers)
    scheduler = make_scheduler(optimizer, schedule, (lambda: budget.share) if is_timed else None)

    # The run, its averages and its listeners
    provenance = provenance_of(config, given, sources, inputs.datasets, start, accelerator)
    all_listeners: list[Listener] = [provenance, *listeners]
    if is_main and not config.check:
        all_listeners.append(MetricsFile(folder, progress.step))
        tags = [policy.config.type, config.dataset.name, f"seed {seed}"]
        name = config.run_name(policy.config.type)
        all_listeners += make_trackers(config, folder, settings, name=name, tags=tags, step=progress.step)
    run = Run(
        config=config,
        given=given,
        settings=settings,
        folder=folder,
        seed=seed,
        accelerator=accelerator,
        start=start,
        samples=training_samples(config, seed, policy, sources, inputs.datasets),
        optimizer=optimizer,
        scheduler=scheduler,
        clip_norm=optimizer_settings.grad_clip_norm,
        progress=progress,
        budget=budget,
        listeners=all_listeners,
        provenance=provenance,
        sharded=sharded,
        bad_samples=BadSamples(config.dataset.max_bad_samples),
    )
    if config.dataset.eval_split:
        samples = held_out_samples(seed, policy, sources, inputs.held_out)
        run.validation = Validation(samples, config.max_eval_samples, config.batch_size)
    if config.ema.enable:
        assert config.ema.decay is not None  # resolved
        run.ema = ExponentialMovingAverage(policy, config.ema.decay, warmup=config.ema.warmup)

    # Resume
    if checkpoint is not None:
        if not is_timed:
            note_new_schedule(read_schedule(checkpoint), schedule, progress.step)
        run.load(checkpoint)
    if sharded is None:
        run.workers = adaptive_workers(config, seed, start, run.samples, accelerator, budget)
    facts = facts_of_run(folder, seed, config, accelerator, start, inputs.datasets, schedule)
    facts |= {} if cached is None else {"kept": cached}
    facts |= {} if run.workers is None else {"device": run.workers.description}
    table = "\n".join(match_table(policy.config, source) for source in sources)
    run.emit(Started(folder, progress.step, config.n_steps, facts, table, config.train_minutes))
    return run


def _train(run: Run) -> Ended:
    """Train until the budget is spent, or until SIGINT or SIGTERM: the current step is then finished and saved.

    A signal interrupts waiting for data, a validation and an evaluation at once.

    Raises:
        TrainingError: too many consecutive steps were not finite, or too many frames unreadable.
    """
    try:
        with stop_signals() as stop:
            ended = loop(run, stop)
        run.emit(ended)
        return ended
    except Exception as error:
        run.emit(Failed(run.step, str(error)))
        raise
    finally:
        if run.workers is not None:
            run.workers.close()


def loop(run: Run, stop: StopRequest) -> Ended:
    """Run steps, and between them what is due: measuring, validation, evaluation, saving."""
    config, budget, meter = run.config, run.budget, Meter(run.samples_per_step)
    batches = iter(run.loader()) if run.workers is None else iter(())
    run.model.train()
    checkpoint: Path | None = None
    budget.begin(run.agreed_seconds())
    measured, log_freq = budget.share, config.log_freq or DEFAULT_LOG_FREQ
    stops = False
    while not budget.is_over and not stops:
        try:
            loss, norm, waited, stops = _step_or_save(run, batches, stop)
        except Stopped:  # before the batch was loaded: the step has not begun
            run.optimizer.zero_grad(set_to_none=True)
            if run.step == run.progress.step:
                checkpoint = checkpoint_folder(run.folder, run.step) if run.step else None
            elif config.save_checkpoint and run.step > run.saved:
                checkpoint = run.save()
            break
        step = run.step
        meter.add(step, loss, norm, waited)
        run.emit(Stepped(step, budget.seconds_left))
        if run.accelerator.num_processes == 1:  # several processes agree in the next step
            stops = bool(stop)
        stops = stops or run.bad_samples.is_over
        is_last = budget.is_over or stops
        saves = config.save_checkpoint and (is_last or _is_due(step, config.save_freq))
        validates = run.validation is not None and (_is_due(step, config.eval_steps) or is_last)
        measures = step % log_freq == 0 or saves or validates or is_last
        if config.train_minutes is not None:
            measures = measures or budget.share - measured > 1 / LOG_POINTS
        # Reading a loss synchronizes with the device, which costs nothing on a CPU.
        if measures or run.accelerator.device.type == "cpu":
            run.check_finite(meter)
        if measures:
            measured = budget.share
            metrics = meter.read(max(group["lr"] for group in run.optimizer.param_groups))
            if config.train_minutes is not None:
                metrics["seconds"] = round(budget.seconds, 2)
            if len(run.bad_samples):
                metrics["bad_samples"] = len(run.bad_samples)
            if validates and not stops:
                metrics |= run.validate(stop)
                run.pause(meter)
            run.emit(Measured(step, metrics))
        if config.env.type is not None and _is_due(step, config.eval_freq) and not stops:
            run.evaluate(stop)
            run.pause(meter)
        if saves:
            checkpoint = run.save()
            run.pause(meter)
    if run.bad_samples.is_over and not budget.is_over:
        raise run.bad_samples.error(run.step, checkpoint)
    run.bad_samples.note()
    return Ended(run.step, checkpoint, budget.is_over, meter.data_wait, bool(stop), run.workers is None)


def _step_or_save(
    run: Run, batches: Iterator[Batch], stop: StopRequest
) -> tuple[Tensor, Tensor, float, bool]:
    """Run `train_step`, and save the last finished step if the dataset can no longer be read."""
    try:
        return train_step(run, batches, stop)
    except DatasetError:
        is_first = run.step == run.progress.step
        is_single = run.accelerator.num_processes == 1  # saving waits for all processes
        if run.config.save_checkpoint and not is_first and is_single and run.step > run.saved:
            run.optimizer.zero_grad(set_to_none=True)
            run.save()
        raise


def train_step(run: Run, batches: Iterator[Batch], stop: StopRequest) -> tuple[Tensor, Tensor, float, bool]:
    """Run one step; return global loss and gradient norm (on the device), seconds of waiting, and whether to stop.

    The loss is the mean over the valid entries of the whole global batch. Their number is known only after the last forward
    pass, so gradients of sums are accumulated and divided then: one process with a large batch, several with smaller ones,
    and accumulated batches give the same result.

    Raises:
        Stopped: a signal came before the batch was loaded. Several processes finish the step, and agree in it.
    """
    if run.workers is not None:
        return _shared_step(run, run.workers)
    device, parts = run.accelerator.device, run.config.gradient_accumulation_steps
    totals = torch.zeros(5, device=device)
    waited = 0.0
    unreadable: list[Unreadable] = []
    for part in range(parts):
        waiting = time.perf_counter()
        with record_function("data"), stop.interruptible(run.accelerator.num_processes == 1):
            batch, drawn = split_noise(next_batch(batches))
            waited += time.perf_counter() - waiting
            unreadable += batch.pop(UNREADABLE, ())
        with record_function("preprocess"):
            inputs = run.start.preprocess(batch)
            arguments = {name: value.to(device, non_blocking=True) for name, value in drawn.items()}
        is_last = part == parts - 1
        with run.gradient_sync(is_last):
            with record_function("forward"), run.accelerator.autocast():
                loss, counted = run.model(inputs, **arguments, reduction="sum")
            with record_function("backward"):
                loss.backward()
        totals[:2] += torch.stack((loss.detach().float(), counted["entries"].float()))
    stops, seconds = False, run.budget.now()
    if run.accelerator.num_processes > 1:
        totals[2] += bool(stop)  # signals come at different steps, all processes stop at the same
        totals[3] += len(unreadable)
        totals[4] += seconds if run.accelerator.is_main_process else 0.0
        totals = run.accelerator.reduce(totals, reduction="sum")
        if run.config.train_minutes is not None:
            seconds = float(totals[4])
        stops, is_bad = (totals[2:4] > 0).tolist()
        if is_bad:
            unreadable = gather_object(unreadable)
    run.bad_samples.add(unreadable, run.step + 1, is_first=run.step == 0)
    with record_function("optimizer"):
        mean, norm = update(run, totals[0], totals[1].clamp_min(1), seconds)
    return mean, norm, waited, stops


def _shared_step(run: Run, workers: AdaptiveWorkers) -> tuple[Tensor, Tensor, float, bool]:
    """Run `train_step` where several processes of this machine compute the gradients."""
    with record_function("gradients"):
        result = workers.gradients(run.first_position(run.step + 1))
    run.bad_samples.add(result.unreadable, run.step + 1, is_first=run.step == 0)
    with record_function("optimizer"):
        mean, norm = update(run, result.loss, result.entries.clamp_min(1), run.budget.now())
    return mean, norm, result.waited, False


def update(run: Run, loss: Tensor, entries: Tensor, seconds: float) -> tuple[Tensor, Tensor]:
    """Update the weights with the gradients of a summed loss; return its mean over `entries` and the gradient norm.

    The step is finished afterwards, with `seconds` of the budget spent.
    """
    gradients = [p.grad for p in run.model.parameters() if p.grad is not None]
    # Data parallelism has averaged the sums over the processes.
    torch._foreach_mul_(gradients, run.accelerator.num_processes / entries)
    largest = run.clip_norm if run.clip_norm > 0 else math.inf
    norm = nn.utils.clip_grad_norm_(run.model.parameters(), largest)
    norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
    mean = loss / entries
    is_bad = ~(torch.isfinite(norm) & torch.isfinite(mean))
    if run.accelerator.device.type in SKIPS_BAD_STEPS:
        run.optimizer.found_inf = is_bad.float()  # type: ignore[attr-defined]
        run.optimizer.step()
    elif not is_bad:  # synchronizes with the device
        run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    if run.ema is not None:
        run.ema.update(run.start.policy)
    run.budget.spend(seconds)
    run.scheduler.step()
    return mean, norm


def _new_folder(config: TrainConfig) -> Path:
    kind = config.policy.type or policy_type_at(str(config.policy.path))
    return config.run_folder(kind, datetime.datetime.now())


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0

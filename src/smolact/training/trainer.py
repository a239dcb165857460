"""`train(config)` is `smolact train`: it prepares and checks a run, and trains."""

from __future__ import annotations

import contextlib
import datetime
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from smolact.datasets.reader import LeRobotDataset
from smolact.datasets.transforms import ImageTransforms
from smolact.errors import SmolactError
from smolact.policies.configuration import PRETRAINED_MODEL
from smolact.policies.sharing import contents
from smolact.policies.tree import tree_of
from smolact.training.adaptive_workers import adaptive_workers
from smolact.training.bad_samples import BadSamples
from smolact.training.budget import Budget, is_spent
from smolact.training.cache import build_cache
from smolact.training.checkpoint import load_training_state, read_progress, read_schedule
from smolact.training.config import TrainConfig, resolve, to_json
from smolact.training.data import RepeatedNoise, TrainDataset
from smolact.training.devices import make_accelerator, matmul_precision
from smolact.training.ema import ExponentialMovingAverage, check_no_average
from smolact.training.facts import facts_of_run, samples_per_step
from smolact.training.initialization import PolicyBundle
from smolact.training.loop import Trainer
from smolact.training.optim import make_optimizer, make_scheduler, note_new_schedule, optimization_of
from smolact.training.preflight import (
    check_disk,
    check_evaluation,
    match_table,
    note_prompts,
)
from smolact.training.provenance import provenance_of
from smolact.training.random_state import seed_everything
from smolact.training.run_folder import (
    TRAINING_STATE,
    check_unused,
    remove_begun,
    reserve,
    resolve_last,
    save_begun,
)
from smolact.training.run_inputs import agreed_seed, prepare_run, progress_callback, with_saved_names
from smolact.training.saved_settings import to_dict
from smolact.training.sections import policy_type_at
from smolact.training.sharding import ShardedPolicy, make_mesh
from smolact.training.sources import Source, open_sources, order_of
from smolact.training.trackers import make_trackers
from smolact.training.tracking import (
    Ended,
    Listener,
    MetricsFile,
    Started,
)
from smolact.training.validation import Validation
from smolact.uploads import check_repository, publish

logger = logging.getLogger(__name__)


def train(config: TrainConfig, *, listeners: Sequence[Listener] = ()) -> Ended:
    """Train a policy: `smolact train` without command line and display.

    Args:
        config: the settings; `TrainConfig.resume` makes those of a run that goes on.
        listeners: receive every event, in this order.

    Returns:
        the end of the run: complete, or stopped by a signal, with a checkpoint to resume from.

    Raises:
        SmolactError: settings, dataset, weights or checkpoint are invalid, before the first step; `TrainingError` during
            training; `HubError` after the last step, when everything is saved, if publishing the policy failed.
    """
    began = time.monotonic()
    checkpoint = config.checkpoint
    if checkpoint is None:
        config.check_complete()
        config = with_saved_names(config)
    given = to_dict(config)
    config = resolve(config)
    accelerator = make_accelerator(config)
    seed = agreed_seed(config, accelerator)
    run = _run_folder(config) if checkpoint is None else checkpoint.parent.parent
    with contextlib.ExitStack() as stack:
        if accelerator.is_main_process and config.check:
            if checkpoint is None:
                check_unused(run, restart=config.begins_again)
        elif accelerator.is_main_process:
            stack.enter_context(reserve(run, resumes=checkpoint is not None, restart=config.begins_again))
        if checkpoint is not None:
            checkpoint = resolve_last(checkpoint)
            progress = read_progress(checkpoint)
            if (
                progress.step >= config.n_steps
                if config.train_minutes is None
                else is_spent(config.train_minutes, progress.seconds)
            ):
                return _complete(config, checkpoint, progress.step, accelerator, listeners)
        return _train(config, given, checkpoint, run, seed, accelerator, listeners, began)


def _train(
    config: TrainConfig,
    given: Mapping[str, Any],
    checkpoint: Path | None,
    run: Path,
    seed: int,
    accelerator: Accelerator,
    listeners: Sequence[Listener],
    began: float,
) -> Ended:
    """Return `train` while the run's folder is locked."""
    seed_everything(seed)
    given = {**given, "seed": seed}
    inputs = prepare_run(config, accelerator, checkpoint)
    start, progress = inputs.start, inputs.progress
    sources, datasets = inputs.sources, inputs.datasets
    check_evaluation(start.policy.config, config)
    note_prompts(start.preprocess, (task for source in sources for task in source.meta.tasks.values()))
    check_disk(run, start.policy, config)
    if config.policy.published_as is not None and accelerator.is_main_process:
        private = config.policy.settings.get("private")
        repo_id = check_repository(
            config.policy.published_as, "model", private=private, make=not config.check
        )
        logger.info("When the run is done its policy is published as '%s'.", repo_id)
    optimizer_settings, schedule = optimization_of(start.policy.config, config)
    settings = to_json(config, start.policy.config, optimizer_settings, schedule) | {
        "seed": seed,
        "output_dir": str(run),
    }
    if checkpoint is None and accelerator.is_main_process and not config.check:
        save_begun(run, given)
    cache_summary = None
    if not config.check:
        cache_summary = build_cache(
            config,
            start.policy,
            sources,
            inputs.all_datasets,
            accelerator,
            progress_callback(listeners, accelerator),
        )
    if config.gradient_checkpointing:
        start.policy.recompute_activations()
    sharded = (
        ShardedPolicy(start.policy, make_mesh(config.parallelism, accelerator))
        if config.parallelism.splits
        else None
    )
    budget = Budget.of(config, began)
    budget.resume(progress.step, progress.seconds, progress.lead)
    is_timed = config.train_minutes is not None
    if checkpoint is not None and not is_timed:
        note_new_schedule(read_schedule(checkpoint), schedule, progress.step)
    optimizer = make_optimizer(start.policy, optimizer_settings, config.lr_multipliers)
    scheduler = make_scheduler(optimizer, schedule, (lambda: budget.share) if is_timed else None)
    size = tree_of(start.policy).size
    provenance = provenance_of(
        config,
        given,
        sources,
        datasets,
        weights=start.weights_source,
        parameters=(size.parameters, size.trained),
        device=accelerator.device.type,
        processes=accelerator.num_processes,
        samples_per_step=samples_per_step(config, accelerator),
    )
    if checkpoint is not None:
        provenance.resume(checkpoint / PRETRAINED_MODEL)
    all_listeners: list[Listener] = [provenance, *listeners]
    if accelerator.is_main_process and not config.check:
        all_listeners.append(MetricsFile(run, progress.step))
        tags = [start.policy.config.type, config.dataset.name, f"seed {seed}"]
        name = config.run_name(start.policy.config.type)
        all_listeners += make_trackers(config, run, settings, name=name, tags=tags, step=progress.step)
    trainer = Trainer(
        config=config,
        given=given,
        settings=settings,
        run=run,
        seed=seed,
        accelerator=accelerator,
        start=start,
        samples=_samples(config, seed, start, sources, datasets),
        optimizer=optimizer,
        scheduler=scheduler,
        clip_norm=optimizer_settings.grad_clip_norm,
        progress=progress,
        listeners=all_listeners,
        provenance=provenance,
        sharded=sharded,
        bad_samples=BadSamples(config.dataset.max_bad_samples),
        budget=budget,
    )
    if config.dataset.eval_split:
        held_out = TrainDataset(
            open_sources([sources[index] for index in inputs.held_out], list(inputs.held_out.values())),
            seed,
            start.policy.training_draws,
            tolerant=True,
        )
        trainer.validation = Validation(held_out, config.max_eval_samples, config.batch_size)
    if config.ema.enable:
        assert config.ema.decay is not None  # set by the section
        trainer.ema = ExponentialMovingAverage(start.policy, config.ema.decay, warmup=config.ema.warmup)
    if checkpoint is not None:
        load_training_state(checkpoint, optimizer, scheduler)
        trainer.bad_samples.load(checkpoint / TRAINING_STATE)
        if trainer.ema is None:
            check_no_average(checkpoint / TRAINING_STATE)
        else:
            trainer.ema.load(checkpoint / TRAINING_STATE, start.policy)
    if sharded is None:
        trainer.shared = adaptive_workers(config, seed, start, trainer.samples, accelerator, budget)
    trainer.emit(
        Started(
            run,
            progress.step,
            config.n_steps,
            facts_of_run(run, seed, config, accelerator, start, datasets, schedule)
            | ({} if cache_summary is None else {"kept": cache_summary})
            | ({} if trainer.shared is None else {"device": trainer.shared.description}),
            "\n".join(match_table(start.policy.config, source) for source in sources),
            config.train_minutes,
        )
    )
    if config.check:
        return Ended(progress.step, None, is_complete=True)
    with matmul_precision(accelerator.device, "high"):
        ended = trainer.run_to_end()
    if accelerator.is_main_process:
        if ended.checkpoint is not None or ended.is_complete:
            remove_begun(run)
        if ended.is_complete and ended.checkpoint is not None and not ended.is_stopped:
            _publish(ended.checkpoint, config)
        elif ended.is_complete and config.policy.published_as is not None:
            logger.warning(
                "Stopped before the policy was published. %s", _publish_hint(ended.checkpoint, config)
            )
    return ended


def _complete(
    config: TrainConfig,
    checkpoint: Path,
    step: int,
    accelerator: Accelerator,
    listeners: Sequence[Listener],
) -> Ended:
    """Report that a resumed run is complete, and publish its policy if necessary."""
    ended = Ended(step, checkpoint, is_complete=True)
    if accelerator.is_main_process:
        logger.info(
            "The run is complete: %s is of step %d, and the run has %s. Give more to train on.",
            checkpoint,
            step,
            f"--steps={config.n_steps}"
            if config.train_minutes is None
            else f"--train_minutes={config.train_minutes:g}",
        )
        for listener in listeners:
            listener(ended)
        if not config.check:
            _publish(checkpoint, config)
    return ended


def _publish(checkpoint: Path, config: TrainConfig) -> None:
    """Publish the trained policy, if the settings ask for it.

    Raises:
        SmolactError: publishing failed; the message contains the remedy.
    """
    repo_id, private = config.policy.published_as, config.policy.settings.get("private")
    if repo_id is None:
        return
    try:
        page = publish(contents(checkpoint, name=repo_id), repo_id, private=private)
    except SmolactError as error:
        raise type(error)(
            f"The training is done, and its policy is in {checkpoint}; only publishing failed. {_message(error)} "
            f"{_publish_hint(checkpoint, config)}"
        ) from error
    logger.info("Published: %s", page)


def _publish_hint(checkpoint: Path | None, config: TrainConfig) -> str:
    private_flag = " --private" if config.policy.settings.get("private") else ""
    return f"Publish it with: smolact push {checkpoint} {config.policy.published_as}{private_flag}"


def _message(error: SmolactError) -> str:
    return str(error.args[-1]) if error.args else str(error)


def _samples(
    config: TrainConfig,
    seed: int,
    start: PolicyBundle,
    sources: Sequence[Source],
    datasets: Sequence[LeRobotDataset],
) -> TrainDataset:
    transforms = config.dataset.image_transforms
    drop_last = config.dataset.drop_n_last_frames
    if drop_last is None:
        drop_last = start.policy.config.drop_n_last_frames
    draws = start.policy.training_draws
    if draws is not None and config.noise_draws != 1:
        draws = RepeatedNoise(draws, config.noise_draws)
    return TrainDataset(
        open_sources(sources, datasets),
        seed,
        draws,
        ImageTransforms(transforms) if transforms.enable else None,
        order_of(sources, datasets, seed, drop_last),
        tolerant=True,
    )


def _run_folder(config: TrainConfig) -> Path:
    kind = config.policy.type or policy_type_at(str(config.policy.path))
    return config.run_folder(kind, datetime.datetime.now())

"""`train(config, explicit)` is `smolact train`: everything that a run needs is made and checked, then it goes."""

from __future__ import annotations

import datetime
import logging
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator

from smolact import durable
from smolact.errors import ConfigError
from smolact.training.checkpoint import (
    CHECKPOINTS,
    TRAINING_STATE,
    Progress,
    load_training_state,
    read_progress,
    remove_unfinished,
)
from smolact.training.config import TrainConfig, to_json
from smolact.training.data import (
    Samples,
    chosen_episodes,
    open_dataset,
    read_metadata,
)
from smolact.training.devices import make_accelerator, total
from smolact.training.ema import ExponentialMovingAverage, check_no_average
from smolact.training.facts import facts_of_run
from smolact.training.initialization import (
    Start,
    policy_config_of,
    start_new,
    start_resumed,
    training_statistics,
)
from smolact.training.loop import Trainer
from smolact.training.optim import make_optimizer, make_scheduler, optimization_of
from smolact.training.preflight import (
    check_before_start,
    check_disk,
    check_evaluation,
    check_features,
    note_prompts,
)
from smolact.training.random_state import seed_everything
from smolact.training.sharding import ShardedPolicy, make_mesh
from smolact.training.trackers import make_trackers
from smolact.training.tracking import (
    METRICS,
    Ended,
    Listener,
    MetricsFile,
    Started,
)
from smolact.training.validation import Validation, split_episodes

logger = logging.getLogger(__name__)


def train(
    config: TrainConfig,
    explicit: Mapping[str, str] | None = None,
    *,
    checkpoint: Path | None = None,
    listeners: Sequence[Listener] = (),
) -> Ended:
    """Train a policy: all of `smolact train` but the typing and the showing.

    Args:
        config: the settings.
        explicit: which of them were set by hand, and where (`smolact.cli.parsing.parse` tells); it decides what the
            schedule and the freezes of random weights may change.
        checkpoint: resume this one.
        listeners: told of every event; the first one hears it first.

    Returns:
        where the run ended: complete, or stopped by a signal, with a checkpoint that resumes it.

    Raises:
        SmolactError: whatever is wrong with settings, dataset, weights or checkpoint, before the first step;
            `TrainingError` when the loss is not finite.
    """
    explicit = dict(explicit or {})
    if checkpoint is None:
        config.check_complete()
    accelerator = make_accelerator(config)
    seed = _agreed_seed(config, accelerator)
    device = accelerator.device.type  # "cuda" is this process's card; its number is nobody else's business
    seed_everything(seed)
    meta = read_metadata(config.dataset)
    statistics = training_statistics(meta, imagenet=config.dataset.use_imagenet_stats)
    episodes = chosen_episodes(config.dataset, meta)
    held_out: list[int] = []
    if config.dataset.eval_split:
        episodes, held_out = split_episodes(episodes, meta, config.dataset.eval_split)
    if checkpoint is None:
        policy_config, source = policy_config_of(config, explicit, meta)
        run = config.run_folder(policy_config.type, datetime.datetime.now())
        if accelerator.is_main_process:
            _refuse_used(run)
        check_features(policy_config, meta, config.rename_map)
        dataset = open_dataset(config.dataset, policy_config, meta.fps, episodes)
        check_before_start(policy_config, dataset, statistics, config.rename_map)
        start = start_new(policy_config, source, statistics, config, device)
        progress = Progress(0, 0)
    else:
        start, progress = _resumed(config, explicit, checkpoint, device)
        run = checkpoint.parent.parent
        if accelerator.is_main_process:
            remove_unfinished(run)
        dataset = open_dataset(config.dataset, start.policy.config, meta.fps, episodes)
        check_before_start(start.policy.config, dataset, statistics, config.rename_map)
    check_evaluation(start.policy.config, config)
    note_prompts(start.preprocess, dataset.meta.tasks.values())
    check_disk(run, start.policy, config)
    sharded = (
        ShardedPolicy(start.policy, make_mesh(config.parallelism, accelerator))
        if config.parallelism.splits
        else None
    )
    optimizer_settings, schedule = optimization_of(start.policy.config, config, explicit)
    optimizer = make_optimizer(start.policy, optimizer_settings, config.lr_multipliers)
    scheduler = make_scheduler(optimizer, schedule)
    settings = to_json(config, start.policy.config, optimizer_settings, schedule) | {
        "seed": seed,
        "output_dir": str(run),
    }
    heard = list(listeners)
    if accelerator.is_main_process and not config.check:
        durable.make_folder(run)
        heard.append(MetricsFile(run, progress.step))
        tags = [start.policy.config.type, config.dataset.name, f"seed {seed}"]
        name = config.run_name(start.policy.config.type)
        heard += make_trackers(config, run, settings, name=name, tags=tags, step=progress.step)
    trainer = Trainer(
        config=config,
        explicit=explicit,
        settings=settings,
        run=run,
        seed=seed,
        accelerator=accelerator,
        start=start,
        dataset=dataset,
        optimizer=optimizer,
        scheduler=scheduler,
        clip_norm=optimizer_settings.grad_clip_norm,
        progress=progress,
        listeners=heard,
        sharded=sharded,
    )
    if held_out:
        kept = Samples(
            open_dataset(config.dataset, start.policy.config, meta.fps, held_out),
            seed,
            start.policy.training_draws,
        )
        trainer.validation = Validation(kept, config.max_eval_samples, config.batch_size)
    if config.ema.enable:
        assert config.ema.decay is not None  # the section settles it
        trainer.ema = ExponentialMovingAverage(start.policy, config.ema.decay, warmup=config.ema.warmup)
    if checkpoint is not None:
        load_training_state(checkpoint, optimizer, scheduler)
        if trainer.ema is None:
            check_no_average(checkpoint / TRAINING_STATE)
        else:
            trainer.ema.load(checkpoint / TRAINING_STATE, start.policy)
    trainer.tell(
        Started(
            run,
            progress.step,
            config.steps,
            facts_of_run(run, seed, config, accelerator, start, dataset, schedule),
        )
    )
    if config.check:
        return Ended(progress.step, None, is_complete=True)
    return trainer.run_to_end()


def _resumed(
    config: TrainConfig, explicit: Mapping[str, str], checkpoint: Path, device: str
) -> tuple[Start, Progress]:
    """The policy of a checkpoint and where its run stands, with the policy settings that were given as flags."""
    progress = read_progress(checkpoint)
    if progress.step >= config.steps:
        raise ConfigError(
            f"{checkpoint} is of step {progress.step} and the run has --steps={config.steps}: nothing is left to do. "
            "Give more --steps to train on."
        )
    if explicit.get("rename_map", "").startswith("--"):
        raise ConfigError(
            "--rename_map can't change when a run is resumed: the checkpoint's map is used. Drop it."
        )
    given = {
        k: v for k, v in config.policy.settings.items() if explicit.get(f"policy.{k}", "").startswith("--")
    }
    given.pop("device", None)
    fixed = [
        source for name, source in explicit.items() if name.startswith("peft.") and source.startswith("--")
    ]
    if fixed:
        raise ConfigError(
            f"{fixed[0]} can't change when a run is resumed: its adapters are there already. Drop it."
        )
    return start_resumed(checkpoint, given, device), progress


def _agreed_seed(config: TrainConfig, accelerator: Accelerator) -> int:
    """`--seed`, or one that the first process draws for all."""
    if config.seed is not None:
        return config.seed
    drawn = secrets.randbelow(2**31) if accelerator.is_main_process else 0
    return int(total(accelerator, torch.tensor(drawn, device=accelerator.device)))


def _refuse_used(run: Path) -> None:
    if (run / METRICS).is_file() and not any((run / CHECKPOINTS).glob("[0-9]*")):
        raise ConfigError(
            f"--output_dir={run} holds a run that was stopped before its first checkpoint, so there is nothing to go on "
            "from. Remove the folder, or choose another."
        )
    if run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise ConfigError(
            f"--output_dir={run} holds something already. Continue that run with --resume=true --output_dir={run}, or "
            "choose another folder."
        )

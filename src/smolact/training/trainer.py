"""`train(config, explicit)` is `smolact train`: everything that a run needs is made and checked, then it goes."""

from __future__ import annotations

import datetime
import logging
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator

from smolact import durable
from smolact.datasets.reader import LeRobotDataset
from smolact.datasets.transforms import ImageTransforms
from smolact.errors import ConfigError
from smolact.training.cache import keep
from smolact.training.checkpoint import (
    CHECKPOINTS,
    TRAINING_STATE,
    Progress,
    load_training_state,
    read_progress,
    read_schedule,
    remove_unfinished,
)
from smolact.training.config import TrainConfig, to_json
from smolact.training.data import Samples, SeveralDraws
from smolact.training.devices import make_accelerator, total
from smolact.training.ema import ExponentialMovingAverage, check_no_average
from smolact.training.facts import facts_of_run
from smolact.training.initialization import (
    Start,
    policy_config_of,
    start_new,
    start_resumed,
)
from smolact.training.loop import Trainer
from smolact.training.optim import make_optimizer, make_scheduler, note_new_schedule, optimization_of
from smolact.training.preflight import (
    check_disk,
    check_evaluation,
    check_sources,
    match_table,
    note_prompts,
)
from smolact.training.random_state import seed_everything
from smolact.training.sharding import ShardedPolicy, make_mesh
from smolact.training.sources import (
    Source,
    find_sources,
    open_sources,
    order_of,
    shared_features,
    training_statistics,
)
from smolact.training.trackers import make_trackers
from smolact.training.tracking import (
    METRICS,
    Ended,
    Listener,
    MetricsFile,
    Prepared,
    Started,
)
from smolact.training.validation import Validation

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
    sources = find_sources(config.dataset, config.rename_map)
    statistics = training_statistics(sources, imagenet=config.dataset.use_imagenet_stats)
    if checkpoint is None:
        policy_config, origin = policy_config_of(config, explicit, *shared_features(sources))
        run = config.run_folder(policy_config.type, datetime.datetime.now())
        if accelerator.is_main_process:
            _refuse_used(run)
        check_sources(policy_config, sources, statistics)
        datasets = [source.open(policy_config) for source in sources]
        start = start_new(policy_config, origin, statistics, config, device)
        progress = Progress(0, 0)
    else:
        start, progress = _resumed(config, explicit, checkpoint, device)
        run = checkpoint.parent.parent
        if accelerator.is_main_process:
            remove_unfinished(run)
        check_sources(start.policy.config, sources, statistics)
        datasets = [source.open(start.policy.config) for source in sources]
    held_out = {
        index: source.open(start.policy.config, held_out=True)
        for index, source in enumerate(sources)
        if config.dataset.eval_split and source.held_out
    }
    check_evaluation(start.policy.config, config)
    note_prompts(start.preprocess, (task for source in sources for task in source.meta.tasks.values()))
    check_disk(run, start.policy, config)
    kept_story = None
    if not config.check:
        kept_story = keep(
            config,
            start.policy,
            sources,
            [
                [dataset, *([held_out[index]] if index in held_out else [])]
                for index, dataset in enumerate(datasets)
            ],
            accelerator,
            _teller(listeners, accelerator),
        )
    sharded = (
        ShardedPolicy(start.policy, make_mesh(config.parallelism, accelerator))
        if config.parallelism.splits
        else None
    )
    optimizer_settings, schedule = optimization_of(start.policy.config, config, explicit)
    if checkpoint is not None:
        note_new_schedule(read_schedule(checkpoint), schedule, progress.step)
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
        samples=_samples(config, seed, start, sources, datasets),
        optimizer=optimizer,
        scheduler=scheduler,
        clip_norm=optimizer_settings.grad_clip_norm,
        progress=progress,
        listeners=heard,
        sharded=sharded,
    )
    if config.dataset.eval_split:
        kept = Samples(
            open_sources([sources[index] for index in held_out], list(held_out.values())),
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
            facts_of_run(run, seed, config, accelerator, start, datasets, schedule)
            | ({} if kept_story is None else {"kept": kept_story}),
            "\n".join(match_table(start.policy.config, source) for source in sources),
        )
    )
    if config.check:
        return Ended(progress.step, None, is_complete=True)
    return trainer.run_to_end()


def _teller(listeners: Sequence[Listener], accelerator: Accelerator) -> Callable[[str, int, int], None]:
    """Tells listeners how far something is, from the first process."""

    def tell(what: str, done: int, of: int) -> None:
        if accelerator.is_main_process:
            for listener in listeners:
                listener(Prepared(what, done, of))

    return tell


def _samples(
    config: TrainConfig,
    seed: int,
    start: Start,
    sources: Sequence[Source],
    datasets: Sequence[LeRobotDataset],
) -> Samples:
    """What the run learns from, in the run's order."""
    changes = config.dataset.image_transforms
    dropped = config.dataset.drop_n_last_frames
    if dropped is None:
        dropped = int(getattr(start.policy.config, "drop_n_last_frames", 0))
    draws = start.policy.training_draws
    if draws is not None and config.noise_draws != 1:
        draws = SeveralDraws(draws, config.noise_draws)
    return Samples(
        open_sources(sources, datasets),
        seed,
        draws,
        ImageTransforms(changes) if changes.enable else None,
        order_of(sources, datasets, seed, dropped),
    )


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

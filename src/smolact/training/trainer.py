"""The training loop, and what stands around it: `train(config, explicit)` is `smolact train`."""

from __future__ import annotations

import datetime
import logging
import math
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from smolact import durable
from smolact.datasets.reader import LeRobotDataset
from smolact.errors import ConfigError
from smolact.policies.configuration import OptimizerPreset, SchedulerPreset
from smolact.training.checkpoint import (
    TRAIN_CONFIG,
    Progress,
    load_training_state,
    read_progress,
    save_checkpoint,
)
from smolact.training.config import TrainConfig, to_json
from smolact.training.data import make_loader, next_batch, open_dataset, read_metadata
from smolact.training.devices import make_accelerator
from smolact.training.initialization import (
    Start,
    policy_config_of,
    start_new,
    start_resumed,
    training_statistics,
)
from smolact.training.meter import Meter
from smolact.training.optim import make_optimizer, make_scheduler, optimization_of
from smolact.training.preflight import check_before_start, check_evaluation
from smolact.training.random_state import seed_everything, undisturbed
from smolact.training.signals import stop_signals
from smolact.training.tracking import (
    Ended,
    Evaluated,
    Event,
    Listener,
    Measured,
    MetricsFile,
    Saved,
    Started,
    Stepped,
    WandBTracker,
)
from smolact.types import Batch

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
    seed = secrets.randbelow(2**31) if config.seed is None else config.seed
    accelerator = make_accelerator(config)
    device = str(accelerator.device)
    seed_everything(seed)
    meta = read_metadata(config.dataset)
    statistics = training_statistics(meta, imagenet=config.dataset.use_imagenet_stats)
    if checkpoint is None:
        policy_config, source = policy_config_of(config, explicit, meta)
        run = config.run_folder(policy_config.type, datetime.datetime.now())
        _refuse_used(run)
        dataset = open_dataset(config.dataset, policy_config, meta.fps)
        check_before_start(policy_config, dataset, statistics, config.rename_map)
        start = start_new(policy_config, source, statistics, config, device)
        progress = Progress(0, 0)
    else:
        start, progress = _resumed(config, explicit, checkpoint, device)
        run = checkpoint.parent.parent
        dataset = open_dataset(config.dataset, start.policy.config, meta.fps)
        check_before_start(start.policy.config, dataset, statistics, config.rename_map)
    check_evaluation(start.policy.config, config)
    optimizer_settings, schedule = optimization_of(start.policy.config, config, explicit)
    optimizer = make_optimizer(start.policy, optimizer_settings)
    scheduler = make_scheduler(optimizer, schedule)
    durable.make_folder(run)
    settings = to_json(config, start.policy.config, optimizer_settings, schedule) | {
        "seed": seed,
        "output_dir": str(run),
    }
    heard: list[Listener] = [*listeners, MetricsFile(run, progress.step)]
    if config.wandb.enable:
        tags = [start.policy.config.type, config.dataset.name, f"seed {seed}"]
        heard.append(
            WandBTracker(config.wandb, run, config.run_name(start.policy.config.type), settings, tags)
        )
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
    )
    if checkpoint is not None:
        load_training_state(checkpoint, optimizer, scheduler)
    trainer.tell(Started(run, progress.step, config.steps, _facts(trainer, optimizer_settings, schedule)))
    return trainer.run_to_end()


@dataclass
class Trainer:
    """A run that is ready to go: `run_to_end` does its steps.

    Everything it holds was made by `train`; use it alone to bring your own policy, dataset or optimizer.
    """

    config: TrainConfig
    explicit: Mapping[str, str]
    settings: Mapping[str, Any]
    run: Path
    seed: int
    accelerator: Accelerator
    start: Start
    dataset: LeRobotDataset
    optimizer: Optimizer
    scheduler: LambdaLR
    clip_norm: float
    progress: Progress
    listeners: Sequence[Listener]

    def __post_init__(self) -> None:
        """Hand model and optimizer to accelerate; before a state is loaded, which it would move to the device."""
        self._model, self._stepper = self.accelerator.prepare(self.start.policy, self.optimizer)

    def run_to_end(self) -> Ended:
        """Train until `config.steps`, or until SIGINT or SIGTERM: the step under way is finished and saved.

        Raises:
            TrainingError: the loss is not finite; the last checkpoint is from before.
        """
        config = self.config
        loader = make_loader(
            self.dataset,
            config,
            seed=self.seed,
            start=self.progress.samples,
            pin_memory=self.accelerator.device.type == "cuda",
        )
        batches = iter(loader)
        self._model.train()
        meter = Meter(self.progress.step, config.batch_size)
        checkpoint: Path | None = None
        step = self.progress.step
        with stop_signals() as stopped:
            while step < config.steps and not stopped:
                waiting = time.perf_counter()
                batch = next_batch(batches)
                waited = time.perf_counter() - waiting
                loss, norm = self._step(batch)
                step += 1
                meter.add(step, loss, norm, waited)
                self.tell(Stepped(step))
                is_last = step == config.steps or bool(stopped)
                saves = config.save_checkpoint and (is_last or _is_due(step, config.save_freq))
                if step % config.log_freq == 0 or saves or is_last:
                    self.tell(Measured(step, meter.read(self.optimizer.param_groups[0]["lr"])))
                if config.env.type is not None and (_is_due(step, config.eval_freq) and not stopped):
                    self._evaluate(step)
                    meter.restart_clock()
                if saves:
                    checkpoint = self._save(step)
                    meter.restart_clock()
        ended = Ended(step, checkpoint, step >= config.steps)
        self.tell(ended)
        return ended

    def tell(self, event: Event) -> None:
        """Tell every listener."""
        for listener in self.listeners:
            listener(event)

    def _step(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """One update; loss and gradient norm stay on the device."""
        inputs = self.start.preprocess(batch)
        with self.accelerator.autocast():
            loss, _ = self._model(inputs)
        self.accelerator.backward(loss)
        largest = self.clip_norm if self.clip_norm > 0 else math.inf
        norm = self.accelerator.clip_grad_norm_(self._model.parameters(), largest)
        self._stepper.step()
        self._stepper.zero_grad(set_to_none=True)
        self.scheduler.step()
        return loss.detach(), norm

    def _progress(self, step: int) -> Progress:
        seen = self.progress.samples + (step - self.progress.step) * self.config.batch_size
        return Progress(step, seen, self.config.batch_size)

    def _evaluate(self, step: int) -> None:
        from smolact.envs.factory import make_env
        from smolact.evaluation.rollout import evaluate

        env, count = self.config.env, self.config.eval
        with (
            undisturbed(),
            make_env(
                str(env.type), count.batch_size, task=env.task, mapping=env.mapping, **env.kwargs
            ) as environments,
        ):
            result = evaluate(
                self.start.policy,
                self.start.preprocess,
                self.start.postprocess,
                environments,
                n_episodes=count.n_episodes,
                seed=self.seed,
            )
        low, high = result.success.interval
        rates = {"success_rate": result.success.rate, "success_low": low, "success_high": high}
        self.tell(Evaluated(step, rates, result))

    def _save(self, step: int) -> Path:
        checkpoint = save_checkpoint(
            self.run,
            self._progress(step),
            policy=self.start.policy,
            optimizer=self.optimizer,
            scheduler=self.scheduler,
            save_policy=partial(_save_policy, self.start, self.settings),
            explicit=self.explicit,
        )
        self.tell(Saved(step, checkpoint))
        return checkpoint


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
    return start_resumed(checkpoint, given, device), progress


def _save_policy(start: Start, settings: Mapping[str, Any], folder: Path) -> None:
    start.policy.save_pretrained(folder)
    start.preprocess.save_pretrained(folder)
    start.postprocess.save_pretrained(folder)
    durable.write_json(folder / TRAIN_CONFIG, settings)


def _refuse_used(run: Path) -> None:
    if run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise ConfigError(
            f"--output_dir={run} holds something already. Continue that run with --resume=true --output_dir={run}, or "
            "choose another folder."
        )


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _facts(trainer: Trainer, optimizer: OptimizerPreset, schedule: SchedulerPreset) -> dict[str, str]:
    policy, dataset = trainer.start.policy, trainer.dataset
    every = sum(parameter.numel() for parameter in policy.parameters())
    trained = sum(parameter.numel() for parameter in policy.parameters() if parameter.requires_grad)
    return {
        "run": str(trainer.run),
        "dataset": f"{dataset.repo_id}: {dataset.num_episodes} episodes, {dataset.num_frames} frames, {dataset.fps:g} a second",
        "policy": f"{policy.config.type}, {trainer.start.story}",
        "parameters": f"{every / 1e6:.2f} M, of which {trained / 1e6:.2f} M train",
        "device": str(trainer.accelerator.device),
        "steps": f"{trainer.config.steps} of {trainer.config.batch_size} samples"
        f" ({trainer.config.steps * trainer.config.batch_size / max(1, dataset.num_frames):.1f} epochs)",
        "learning rate": f"{schedule.peak_lr:g} after {schedule.num_warmup_steps} steps, {schedule.decay_lr:g} at step "
        f"{schedule.num_decay_steps}",
    }

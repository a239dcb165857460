"""The training loop, and what stands around it: `train(config, explicit)` is `smolact train`."""

from __future__ import annotations

import contextlib
import datetime
import logging
import math
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from smolact import durable
from smolact.datasets.reader import LeRobotDataset
from smolact.datasets.transforms import ImageTransforms
from smolact.errors import ConfigError
from smolact.training.bad_steps import bad_steps_error
from smolact.training.checkpoint import (
    CHECKPOINTS,
    TRAIN_CONFIG,
    TRAINING_STATE,
    Progress,
    checkpoint_folder,
    load_training_state,
    prune_checkpoints,
    read_progress,
    remove_unfinished,
    save_checkpoint,
)
from smolact.training.config import TrainConfig, own_settings, to_json
from smolact.training.data import (
    Samples,
    SeveralDraws,
    chosen_episodes,
    make_loader,
    next_batch,
    open_dataset,
    read_metadata,
    take_drawn,
)
from smolact.training.devices import make_accelerator, total
from smolact.training.ema import ExponentialMovingAverage, check_no_average
from smolact.training.facts import facts_of_run, samples_per_step
from smolact.training.initialization import (
    Start,
    policy_config_of,
    start_new,
    start_resumed,
    training_statistics,
)
from smolact.training.meter import Meter
from smolact.training.optim import make_optimizer, make_scheduler, optimization_of
from smolact.training.preflight import (
    check_before_start,
    check_disk,
    check_evaluation,
    check_features,
    note_prompts,
)
from smolact.training.random_state import seed_everything, undisturbed
from smolact.training.signals import stop_signals
from smolact.training.trackers import make_trackers
from smolact.training.tracking import (
    METRICS,
    Ended,
    Evaluated,
    Event,
    Listener,
    Measured,
    MetricsFile,
    Saved,
    Started,
    Stepped,
)
from smolact.training.validation import Validation, split_episodes
from smolact.types import Batch

logger = logging.getLogger(__name__)

MOST_FILMS = 3
"""Episodes of an evaluation that are filmed."""


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
    validation: Validation | None = None
    ema: ExponentialMovingAverage | None = None

    def __post_init__(self) -> None:
        """Hand model and optimizer to accelerate; before a state is loaded, which it would move to the device."""
        self._model, self._stepper = self.accelerator.prepare(self.start.policy, self.optimizer)
        changes = self.config.dataset.image_transforms
        augment = ImageTransforms(changes) if changes.enable else None
        draws = self.start.policy.training_draws
        if draws is not None and self.config.noise_draws != 1:
            draws = SeveralDraws(draws, self.config.noise_draws)
        self.samples = Samples(self.dataset, self.seed, draws, augment)

    def run_to_end(self) -> Ended:
        """Train until `config.steps`, or until SIGINT or SIGTERM: the step under way is finished and saved.

        Raises:
            TrainingError: too many steps in a row were not finite; the last checkpoint is from before.
        """
        config = self.config
        loader = make_loader(
            self.samples,
            config,
            start=self.progress.samples,
            pin_memory=self.accelerator.device.type == "cuda",
            rank=self.accelerator.process_index,
            processes=self.accelerator.num_processes,
        )
        batches = iter(loader)
        self._model.train()
        meter = Meter(self.samples_per_step)
        checkpoint: Path | None = None
        step = self.progress.step
        with stop_signals() as received:
            stops = False
            while step < config.steps and not stops:
                loss, norm, waited, stops = self._step(batches, bool(received))
                step += 1
                meter.add(step, loss, norm, waited)
                self.tell(Stepped(step))
                if self.accelerator.num_processes == 1:  # several have to agree first, in the next step
                    stops = bool(received)
                is_last = step == config.steps or stops
                saves = config.save_checkpoint and (is_last or _is_due(step, config.save_freq))
                validates = self.validation is not None and (_is_due(step, config.eval_steps) or is_last)
                measures = step % config.log_freq == 0 or saves or validates or is_last
                # Looking at a loss waits for the device: on a CPU that costs nothing.
                if measures or self.accelerator.device.type == "cpu":
                    self._check_finite(meter)
                if measures:
                    metrics = meter.read(self.optimizer.param_groups[0]["lr"])
                    if validates and self.validation is not None:
                        with self._averaged():
                            metrics["validation_loss"] = self.validation.loss(self.start, self.accelerator)
                        meter.restart_clock()
                    self.tell(Measured(step, metrics))
                if config.env.type is not None and (_is_due(step, config.eval_freq) and not stops):
                    self._evaluate(step)
                    meter.restart_clock()
                if saves:
                    checkpoint = self._save(step)
                    meter.restart_clock()
        ended = Ended(step, checkpoint, step >= config.steps)
        self.tell(ended)
        return ended

    @property
    def samples_per_step(self) -> int:
        """The global batch."""
        return samples_per_step(self.config, self.accelerator)

    def tell(self, event: Event) -> None:
        """Tell every listener; of several processes only the first speaks."""
        if self.accelerator.is_main_process:
            for listener in self.listeners:
                listener(event)

    def _averaged(self) -> contextlib.AbstractContextManager[None]:
        """The weights that the run is for: their moving average where there is one."""
        return contextlib.nullcontext() if self.ema is None else self.ema.swapped(self.start.policy)

    def _step(self, batches: Iterator[Batch], stop: bool) -> tuple[Tensor, Tensor, float, bool]:
        """One update: the global loss and gradient norm (on the device), seconds of waiting, and whether to stop.

        The loss is the mean over the valid entries of the whole global batch. How many these are is known when the last
        part is through, so gradients are gathered of sums and divided then: one process with a large batch, several
        with smaller ones, and accumulated batches give the same.
        """
        device, parts = self.accelerator.device, self.config.gradient_accumulation_steps
        totals = torch.zeros(3, device=device)
        waited = 0.0
        for part in range(parts):
            waiting = time.perf_counter()
            batch, drawn = take_drawn(next_batch(batches))
            waited += time.perf_counter() - waiting
            inputs = self.start.preprocess(batch)
            arguments = {name: value.to(device, non_blocking=True) for name, value in drawn.items()}
            is_last = part == parts - 1
            with contextlib.nullcontext() if is_last else self.accelerator.no_sync(self._model):
                with self.accelerator.autocast():
                    loss, counted = self._model(inputs, **arguments, reduction="sum")
                self.accelerator.backward(loss)
            totals += torch.stack(
                (loss.detach().float(), counted["entries"].float(), torch.zeros_like(totals[0]))
            )
        processes = self.accelerator.num_processes
        if processes > 1:
            totals[2] += stop  # processes get a signal at different steps, and must stop at the same
            totals = total(self.accelerator, totals)
            stop = bool(totals[2] > 0)
        entries = totals[1].clamp_min(1)
        gradients = [p.grad for p in self._model.parameters() if p.grad is not None]
        torch._foreach_mul_(
            gradients, processes / entries
        )  # data-parallel processes have averaged their sums
        largest = self.clip_norm if self.clip_norm > 0 else math.inf
        norm = self.accelerator.clip_grad_norm_(self._model.parameters(), largest)
        mean = totals[0] / entries
        # The fused optimizer leaves everything as it is where this is 1: no bad step, and no wait for the device.
        self.optimizer.found_inf = (~(torch.isfinite(norm) & torch.isfinite(mean))).float()  # type: ignore[attr-defined]
        self._stepper.step()
        self._stepper.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update(self.start.policy)
        self.scheduler.step()
        return mean, norm, waited, stop

    def _check_finite(self, meter: Meter) -> None:
        bad = meter.read_new(self.config.max_bad_steps)
        if bad:
            logger.warning(
                "Not finite, and left out: step %s (%d so far).", ", ".join(map(str, bad)), meter.bad_steps
            )
        if meter.bad_in_a_row >= self.config.max_bad_steps:
            raise bad_steps_error(
                self.samples,
                self._first_place(bad[-1]),
                self.samples_per_step,
                bad[-1],
                self.run,
                in_a_row=meter.bad_in_a_row,
                keep=self.accelerator.is_main_process,
            )

    def _first_place(self, step: int) -> int:
        """The first place of the stream that `step` takes."""
        return self.progress.samples + (step - 1 - self.progress.step) * self.samples_per_step

    def _progress(self, step: int) -> Progress:
        return Progress(step, self._first_place(step + 1), self.config.batch_size)

    def _evaluate(self, step: int) -> None:
        if self.accelerator.is_main_process:
            self._evaluate_here(step)
        self.accelerator.wait_for_everyone()

    def _evaluate_here(self, step: int) -> None:
        from smolact.envs.factory import make_env
        from smolact.evaluation.rollout import evaluate

        env, count = self.config.env, self.config.eval
        with (
            undisturbed(),
            self._averaged(),
            make_env(
                str(env.type),
                count.batch_size,
                task=env.task,
                mapping=env.mapping,
                render=True,
                **env.kwargs,
            ) as environments,
        ):
            result = evaluate(
                self.start.policy,
                self.start.preprocess,
                self.start.postprocess,
                environments,
                n_episodes=count.n_episodes,
                seed=self.seed,
                video_folder=self.run / "videos" / f"step_{step:06d}",
                n_videos=min(MOST_FILMS, count.n_episodes),
            )
        low, high = result.success.interval
        rates = {"success_rate": result.success.rate, "success_low": low, "success_high": high}
        self.tell(Evaluated(step, rates, result))

    def _save(self, step: int) -> Path:
        if self.accelerator.is_main_process:
            save_checkpoint(
                self.run,
                self._progress(step),
                policy=self.start.policy,
                optimizer=self.optimizer,
                scheduler=self.scheduler,
                save_policy=self._save_policy,
                save_more=None if self.ema is None else partial(self.ema.save, policy=self.start.policy),
                explicit=self.explicit,
                own_settings=own_settings(self.config),
                processes=self.accelerator.num_processes,
            )
            prune_checkpoints(self.run, self.config.keep_last, self.config.keep_every)
        self.accelerator.wait_for_everyone()
        checkpoint = checkpoint_folder(self.run, step)
        self.tell(Saved(step, checkpoint))
        return checkpoint

    def _save_policy(self, folder: Path) -> None:
        with self._averaged():
            self.start.policy.save_pretrained(folder)
        self.start.preprocess.save_pretrained(folder)
        self.start.postprocess.save_pretrained(folder)
        durable.write_json(folder / TRAIN_CONFIG, self.settings)


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


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0

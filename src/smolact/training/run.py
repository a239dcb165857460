"""A prepared training run: its parts, and what is done with them between the steps."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from smolact import durable
from smolact.errors import TrainingError
from smolact.evaluation.metrics import EvaluationResult
from smolact.policies.base import PreTrainedPolicy
from smolact.policies.configuration import PRETRAINED_MODEL, TRAIN_CONFIG
from smolact.runtime.local import LocalPolicy
from smolact.training.adaptive_workers import AdaptiveWorkers
from smolact.training.bad_samples import BadSamples
from smolact.training.budget import Budget
from smolact.training.checkpoint import Progress, load_training_state, save_checkpoint
from smolact.training.config import TrainConfig, with_steps_done
from smolact.training.data import TrainDataset, batch_of, make_loader
from smolact.training.devices import matmul_precision
from smolact.training.ema import ExponentialMovingAverage, check_no_average
from smolact.training.facts import samples_per_step
from smolact.training.initialization import PolicyBundle
from smolact.training.meter import Meter
from smolact.training.provenance import Provenance
from smolact.training.random_state import preserve_rng_state
from smolact.training.run_folder import TRAINING_STATE, checkpoint_folder, prune_checkpoints
from smolact.training.sharding import ShardedPolicy
from smolact.training.signals import Stopped, StopRequest
from smolact.training.stream import samples_at
from smolact.training.tracking import MAX_VIDEOS, Evaluated, Event, Listener, Saved
from smolact.training.validation import Validation
from smolact.types import Batch

logger = logging.getLogger(__name__)

MAX_SHOWN = 20
"""Frames that a message lists."""


@dataclass
class Run:
    """The parts of a run. `smolact.training.train` makes them, and trains with them."""

    config: TrainConfig
    given: Mapping[str, Any]
    """The settings as they were given, by dotted name."""
    settings: Mapping[str, Any]
    """The content of `train_config.json`."""
    folder: Path
    seed: int
    accelerator: Accelerator
    start: PolicyBundle
    samples: TrainDataset
    optimizer: Optimizer
    scheduler: LambdaLR
    clip_norm: float
    progress: Progress
    """Where the run began or resumed."""
    budget: Budget
    listeners: Sequence[Listener]
    provenance: Provenance
    """Written with each saved policy."""
    sharded: ShardedPolicy | None = None
    """The sharded policy, where the weights are split over processes."""
    validation: Validation | None = None
    ema: ExponentialMovingAverage | None = None
    bad_samples: BadSamples = field(default_factory=BadSamples)
    workers: AdaptiveWorkers | None = None
    """The local processes that share each step of a small policy on a CPU."""

    def __post_init__(self) -> None:
        policy = self.start.policy
        adapters = policy.adapters
        if adapters and (adapters.full or adapters.config.target_modules != policy.adapter_targets):
            # Layers that the loss does not need get no gradients, for which processes would wait forever.
            self.accelerator.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=True)
        self.model: nn.Module = policy if self.sharded else self.accelerator.prepare_model(policy)
        self.saved = self.progress.step
        """The step of the last checkpoint."""

    @property
    def step(self) -> int:
        """The last finished step."""
        return self.budget.step

    @property
    def samples_per_step(self) -> int:
        """The global batch size."""
        return samples_per_step(self.config, self.accelerator)

    def first_position(self, step: int) -> int:
        """Return the stream position of the first sample of `step`."""
        return self.progress.samples + (step - 1 - self.progress.step) * self.samples_per_step

    def load(self, checkpoint: Path) -> None:
        """Restore optimizer, schedule, random generators, moving average and unreadable samples from a checkpoint.

        Raises:
            CheckpointError: a file is missing, corrupt, or of another model.
        """
        state = checkpoint / TRAINING_STATE
        load_training_state(checkpoint, self.optimizer, self.scheduler)
        self.bad_samples.load(state)
        if self.ema is None:
            check_no_average(state)
        else:
            self.ema.load(state, self.start.policy)
        self.provenance.resume(checkpoint / PRETRAINED_MODEL)

    def loader(self) -> Iterable[Batch]:
        """Return the batches of this process, from the position where the run resumes."""
        return make_loader(
            self.samples,
            self.config,
            start=self.progress.samples,
            pin_memory=self.accelerator.device.type == "cuda",
            rank=self.accelerator.process_index,
            processes=self.accelerator.num_processes,
        )

    def pause(self, meter: Meter) -> None:
        """Exclude the time since the last step from the training time."""
        meter.restart_clock()
        if self.workers is not None:
            self.workers.pause()

    def emit(self, event: Event) -> None:
        """Send an event to every listener, from the main process only."""
        if self.accelerator.is_main_process:
            for listener in self.listeners:
                listener(event)

    def averaged(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which the policy has its averaged weights, if the run has a moving average."""
        return contextlib.nullcontext() if self.ema is None else self.ema.swapped(self.start.policy)

    def agreed_seconds(self) -> float:
        """Return the seconds spent, by the main process's clock."""
        seconds = self.budget.now() if self.accelerator.is_main_process else 0.0
        if self.accelerator.num_processes == 1 or self.config.train_minutes is None:
            return seconds
        own = torch.tensor(seconds, device=self.accelerator.device)
        return float(self.accelerator.reduce(own, reduction="sum"))

    @contextlib.contextmanager
    def gradient_sync(self, reduces: bool) -> Iterator[None]:
        """Return a context whose backward pass reduces the gradients over all processes, or keeps them local."""
        if self.sharded is not None:
            self.sharded.set_gradient_sync(reduces)
            yield
        elif reduces:
            yield
        else:
            with self.accelerator.no_sync(self.model):
                yield

    def _full_state(self) -> tuple[PreTrainedPolicy, Optimizer]:
        """Return policy and optimizer with all weights, for the main process; every process must call it."""
        if self.sharded is None:
            return self.start.policy, self.optimizer
        return self.sharded.gather(self.optimizer, keep=self.accelerator.is_main_process)

    def check_finite(self, meter: Meter) -> None:
        """Log the steps since the last call that were not finite.

        Raises:
            TrainingError: too many in a row; the last batch is kept.
        """
        bad = meter.read_new(self.config.max_bad_steps)
        if bad:
            logger.warning(
                "Not finite, and left out: step %s (%d so far).", ", ".join(map(str, bad)), meter.bad_steps
            )
        if meter.bad_in_a_row >= self.config.max_bad_steps:
            raise self._bad_steps_error(bad[-1], meter.bad_in_a_row)

    def _bad_steps_error(self, step: int, in_a_row: int) -> TrainingError:
        """Write the global batch of `step`, the last bad one, to `bad_batch_STEP.safetensors`, and return the error to raise.

        The batch is read again from the stream rather than held in memory at each step.
        """
        first = self.first_position(step)
        indices = samples_at(self.samples.order, range(first, first + self.samples_per_step))
        batch = self.samples.__getitems__(indices)
        suspects = [
            index.frame
            for index, sample in zip(indices, batch, strict=True)
            if not all(map(_is_finite, sample.values()))
        ]
        path = self.folder / f"bad_batch_{step:06d}.safetensors"
        if self.accelerator.is_main_process:
            collated = batch_of(batch)
            tensors = {
                key: value.contiguous() for key, value in collated.items() if isinstance(value, Tensor)
            }
            with durable.replacing_file(path) as temporary:
                durable.save_tensors(temporary, tensors, metadata={"task": json.dumps(collated.get("task"))})
        frames = [index.frame for index in indices]
        what = (
            f"Of its frames, {_shown(suspects)} hold NaN or infinity themselves: mend or leave out their episodes "
            "(--dataset.exclude_episodes)."
            if suspects
            else "Its frames are finite: lower --policy.optimizer_lr."
        )
        return TrainingError(
            f"{in_a_row} steps in a row were not finite, the last of them step {step}, of frames {_shown(frames)}. {what} "
            f"The batch is kept in {path}; checkpoints, where there are any, are from before and whole."
        )

    def validate(self, stop: StopRequest) -> dict[str, float]:
        """Return the held-out loss as `validation_loss`; empty if a signal interrupted it."""
        assert self.validation is not None
        with self.averaged():
            loss = self.validation.loss(self.start, self.accelerator, lambda: bool(stop))
        self.bad_samples.add(self.validation.unreadable, self.step)
        return {} if loss is None else {"validation_loss": loss}

    def evaluate(self, stop: StopRequest) -> None:
        """Evaluate the policy in the environment, unless a signal interrupts it; every process must call it."""
        policy, _ = self._full_state()
        if self.accelerator.is_main_process:
            with self.averaged(), contextlib.suppress(Stopped), stop.interruptible():
                result = self._evaluation(policy.to(self.accelerator.device.type))
                low, high = result.success.interval
                rates = {
                    "success_rate": result.success.rate,
                    "success_low": low,
                    "success_high": high,
                    "max_reward": result.mean_max_reward,
                }
                self.emit(Evaluated(self.step, rates, result))
        self.accelerator.wait_for_everyone()

    def _evaluation(self, policy: PreTrainedPolicy) -> EvaluationResult:
        """Run `--eval.n_episodes` episodes in float32, as `smolact eval` predicts, and restore the run's random state."""
        from smolact.envs.factory import make_env
        from smolact.evaluation.rollout import evaluate

        env, count = self.config.env, self.config.eval
        options = {"task": env.task, "mapping": env.mapping, "render": None, **env.arguments}
        with (
            preserve_rng_state(),
            matmul_precision(self.accelerator.device, "highest"),
            make_env(str(env.type), count.n_environments(env), **options) as environments,
        ):
            has_engine = type(policy).build_engine is not PreTrainedPolicy.build_engine
            predictor = policy.build_engine(dtype=torch.float32) if has_engine else policy
            return evaluate(
                LocalPolicy(predictor, self.start.preprocess, self.start.postprocess),
                environments,
                n_episodes=count.n_episodes,
                seed=self.seed,
                video_folder=self.folder / "videos" / f"step_{self.step:06d}",
                n_videos=min(MAX_VIDEOS, count.n_episodes) if environments.can_render else 0,
            )

    def save(self) -> Path:
        """Write a checkpoint of the last finished step; every process must call it."""
        step = self.step
        policy, optimizer = self._full_state()
        if self.accelerator.is_main_process:
            save_checkpoint(
                self.folder,
                self._progress(),
                policy=policy,
                optimizer=optimizer,
                scheduler=self.scheduler,
                save_policy=partial(self._save_policy, policy),
                save_more=self._save_more,
                settings=self.given,
                processes=self.accelerator.num_processes,
            )
            prune_checkpoints(self.folder, self.config.keep_last, self.config.keep_every)
        self.accelerator.wait_for_everyone()
        self.saved = step
        checkpoint = checkpoint_folder(self.folder, step)
        self.emit(Saved(step, checkpoint))
        return checkpoint

    def _progress(self) -> Progress:
        position = self.first_position(self.step + 1)
        return Progress(self.step, position, self.config.batch_size, self.budget.now(), self.budget.lead)

    def _save_more(self, folder: Path) -> None:
        if self.ema is not None:
            self.ema.save(folder, policy=self.start.policy)
        if len(self.bad_samples):
            self.bad_samples.save(folder)

    def _save_policy(self, policy: PreTrainedPolicy, folder: Path) -> None:
        with self.averaged():
            policy.save_pretrained(folder)
        self.start.preprocess.save_pretrained(folder)
        self.start.postprocess.save_pretrained(folder)
        durable.write_json(folder / TRAIN_CONFIG, with_steps_done(self.settings, self.config, self.step))
        self.provenance.write(folder, self.step, self.config.policy.published_as)


def _is_finite(value: object) -> bool:
    return not isinstance(value, Tensor) or not value.is_floating_point() or bool(torch.isfinite(value).all())


def _shown(indices: list[int]) -> str:
    more = f" and {len(indices) - MAX_SHOWN} more" if len(indices) > MAX_SHOWN else ""
    return ", ".join(map(str, indices[:MAX_SHOWN])) + more

"""The facts about a run that are shown before its first step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from accelerate import Accelerator

from smolact.datasets.reader import LeRobotDataset
from smolact.policies.configuration import SchedulerPreset
from smolact.policies.summary import facts_of, summarize
from smolact.training.config import TrainConfig
from smolact.training.initialization import PolicyBundle


def samples_per_step(config: TrainConfig, accelerator: Accelerator) -> int:
    """Return the global batch size: samples of all processes in one optimizer step."""
    return config.batch_size * int(accelerator.num_processes) * config.gradient_accumulation_steps


def facts_of_run(
    run: Path,
    seed: int,
    config: TrainConfig,
    accelerator: Accelerator,
    start: PolicyBundle,
    datasets: Sequence[LeRobotDataset],
    schedule: SchedulerPreset,
) -> dict[str, str]:
    """Return facts for the user, name to value: policy, data, device and length of the run."""
    weights = list(config.dataset.mix.values()) or [1.0]
    shares = [weight / sum(weights) for weight in weights]
    frames = sum(dataset.num_frames for dataset in datasets)
    drawn = config.n_steps * samples_per_step(config, accelerator)
    return {
        "run": str(run),
        "dataset": " + ".join(
            _dataset(dataset, share) for dataset, share in zip(datasets, shares, strict=True)
        ),
        "policy": f"{start.policy.config.type}, {start.weights_source}",
        **facts_of(summarize(start.policy, config.batch_size)),
        "seed": str(seed),
        "device": _device(config, accelerator),
        **_duration(config, schedule, _global_batch(config, accelerator), drawn / max(1, frames)),
    }


def _duration(config: TrainConfig, schedule: SchedulerPreset, batch: str, epochs: float) -> dict[str, str]:
    if config.train_minutes is None:
        return {
            "steps": f"{config.n_steps} of {batch} ({epochs:.1f} epochs)",
            "learning rate": f"{schedule.peak_lr:g} after {schedule.num_warmup_steps} steps, {schedule.decay_lr:g} at step "
            f"{schedule.num_decay_steps}",
        }
    minutes = config.train_minutes
    duration = f"{60 * minutes:.0f} s" if minutes < 10 else f"{minutes:.0f} minutes"
    warm = schedule.num_warmup_steps / schedule.num_decay_steps
    return {
        "time": f"{duration} in all, in steps of {batch}",
        "learning rate": f"{schedule.peak_lr:g} after {warm:.0%} of the time, {schedule.decay_lr:g} at its end",
    }


def _dataset(dataset: LeRobotDataset, share: float) -> str:
    part = f"{share:.0%} " if share < 1 else ""
    return (
        f"{part}{dataset.repo_id}: {dataset.num_episodes} episodes, {dataset.num_frames} frames, "
        f"{dataset.fps:g} a second"
    )


def _device(config: TrainConfig, accelerator: Accelerator) -> str:
    if accelerator.num_processes == 1:
        return str(accelerator.device)
    share = "weights split over" if config.parallelism.splits else "a copy of the weights in each of"
    return f"{accelerator.device.type}, {share} {accelerator.num_processes} processes"


def _global_batch(config: TrainConfig, accelerator: Accelerator) -> str:
    processes, parts = accelerator.num_processes, config.gradient_accumulation_steps
    factors = [f"{config.batch_size} a process"]
    factors += [f"{processes} processes"] if processes > 1 else []
    factors += [f"{parts} accumulated"] if parts > 1 else []
    product = f" ({' × '.join(factors)})" if len(factors) > 1 else ""
    return f"{samples_per_step(config, accelerator)} samples{product}"

"""Checks before the first step: cameras, state and action, statistics, tasks, disk and memory."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from torch import nn

from smolact.datasets.depth import depth_notice
from smolact.datasets.format import flat_names
from smolact.datasets.metadata import LeRobotDatasetMetadata
from smolact.errors import (
    ConfigError,
    DatasetError,
    FeatureError,
    OutOfMemoryError,
    StatisticsError,
    WriteError,
    did_you_mean,
)
from smolact.machine import SMALL, cores
from smolact.memory import LESS_TO_TRAIN, memory_of, size
from smolact.policies.base import PreTrainedPolicy
from smolact.policies.configuration import PolicyConfig
from smolact.policies.fit import check_cameras, check_env_sizes, side_by_side, vector_map_faults
from smolact.policies.summary import summarize
from smolact.processors.pipeline import ProcessorPipeline
from smolact.processors.quantiles import STATISTICS_OF
from smolact.processors.tokenizer import TokenizerProcessorStep
from smolact.training.config import TrainConfig
from smolact.training.facts import samples_per_step
from smolact.training.gradients import default_part_count
from smolact.training.sources import Source, renamed_features
from smolact.types import ACTION, STATE, NormalizationMode, PolicyFeature, Statistics, is_image_key

logger = logging.getLogger(__name__)

WARN_SHARE = 0.9
"""Share of the free memory above which a step may not fit, since the estimate is a lower bound."""


def check_sources(policy: PolicyConfig, sources: Sequence[Source], statistics: Statistics) -> None:
    """Raise an error unless the policy and the datasets fit each other.

    Args:
        statistics: for normalization; under the dataset's names if there is one dataset.

    Raises:
        ConfigError: the rename map contains a name that the dataset lacks, or maps two features to one.
        FeatureError: a camera, state or action is missing or does not fit.
        StatisticsError: a statistic is missing or not finite.
        DatasetError: an episode has no instruction.
    """
    for source in sources:
        check_features(policy, source.meta, source.rename_map)
        check_tasks(source)
    names = sources[0].rename_map if len(sources) == 1 else {}
    check_statistics(policy, {names.get(key, key): value for key, value in statistics.items()})
    note_chunk(policy, sources)


def check_features(policy: PolicyConfig, meta: LeRobotDatasetMetadata, rename_map: Mapping[str, str]) -> None:
    """Raise an error unless the dataset's names and sizes fit the policy; its frames are not needed.

    Raises:
        ConfigError: the rename map contains a name that the dataset lacks, or maps two features to one.
        FeatureError: a camera, state or action is missing or does not fit.
    """
    check_rename_map(rename_map, list(meta.features))
    if rename_map.get(ACTION, ACTION) != ACTION:
        raise ConfigError(
            f"--rename_map leads '{ACTION}' to '{rename_map[ACTION]}', and actions are not renamed: every policy calls them "
            f"'{ACTION}'. Leave it out of the map."
        )
    note_depth(meta, rename_map)
    inputs, outputs = renamed_features(meta, rename_map)
    check_cameras(policy, {key: value for key, value in inputs.items() if is_image_key(key)}, rename_map)
    check_sizes(policy, {**inputs, **outputs}, rename_map)


def note_depth(meta: LeRobotDatasetMetadata, rename_map: Mapping[str, str]) -> None:
    """Log the depth cameras, which are left out; raise a `ConfigError` if the map maps one to the policy."""
    message = depth_notice(meta)
    if message is None:
        return
    mapped = [key for key in rename_map if key in meta.depth_keys]
    if mapped:
        raise ConfigError(
            f"--rename_map leads '{mapped[0]}' to the policy, and it is a depth camera: no policy reads depth. Leave it out of "
            f"the map; cameras in colour are {', '.join(meta.color_keys) or 'none'}."
        )
    logger.warning("%s", message)


def check_evaluation(policy: PolicyConfig, config: TrainConfig) -> None:
    """Check that the policy fits the environment of `--env.type`, and run an episode with random actions.

    Raises:
        EnvironmentNotFoundError, MissingDependencyError, ConfigError: it can't be made, or reports no task or no success.
        FeatureError: it lacks a feature that the policy needs.
    """
    env = config.env
    if env.type is None:
        return
    is_used = 0 < config.eval_freq <= config.n_steps
    if not is_used:
        logger.warning(
            "--env.type=%s is not used: --eval_freq=%d never comes in %d steps.",
            env.type,
            config.eval_freq,
            config.n_steps,
        )
    from smolact.envs.factory import make_env
    from smolact.envs.mapping import play_random_episode

    with make_env(env.type, task=env.task, mapping=env.mapping, render=None, **env.arguments) as environment:
        offered = {config.rename_map.get(key, key): feature for key, feature in environment.features.items()}
        cameras = {key: feature for key, feature in offered.items() if is_image_key(key)}
        check_cameras(policy, cameras, config.rename_map, "the environment")
        check_env_sizes(policy, offered, config.rename_map)
        if is_used:
            play_random_episode(environment[0])


def note_prompts(preprocess: ProcessorPipeline, tasks: Iterable[str]) -> None:
    """Log a warning if instructions are longer than the policy's token limit, and thus truncated."""
    for step in preprocess.steps:
        if isinstance(step, TokenizerProcessorStep) and step.tokenizer is not None:
            lengths = {task: len(step.tokenizer.encode(task + "\n")) for task in tasks}
            long = {task: length for task, length in lengths.items() if length > step.max_length}
            if long:
                worst = max(long, key=long.__getitem__)
                logger.warning(
                    "%d of %d instructions have more than the %d tokens that the policy reads, and are cut; the longest has "
                    "%d: %.80r. Raise --policy.tokenizer_max_length.",
                    len(long),
                    len(lengths),
                    step.max_length,
                    long[worst],
                    worst,
                )


def check_disk(run: Path, policy: nn.Module, config: TrainConfig) -> None:
    """Raise a `WriteError` if no checkpoint (weights, and two moments of each trained one) fits on the disk; warn if not all fit."""
    if not config.save_checkpoint:
        return
    weights = sum(parameter.numel() * parameter.element_size() for parameter in policy.parameters())
    moments = sum(2 * p.numel() * p.element_size() for p in policy.parameters() if p.requires_grad)
    size = weights + moments
    disk_folder = next(folder for folder in (run.absolute(), *run.absolute().parents) if folder.exists())
    free = shutil.disk_usage(disk_folder).free
    planned = 1 + (config.n_steps - 1) // config.save_freq if config.save_freq else 1
    kept_count = min(planned, config.keep_last + 1) if config.keep_last else planned
    if config.keep_last and config.keep_every:
        kept_count += config.n_steps // config.keep_every
    if size > free:
        raise WriteError(
            f"A checkpoint of this run takes {gigabytes(size)}, and {disk_folder} has {gigabytes(free)} left. Free some space, "
            "or choose another disk with --output_dir."
        )
    if size * kept_count > free:
        logger.warning(
            "The run keeps up to %d checkpoints of %s each, and %s has %s left. Keep fewer (--keep_last=3), or save less often "
            "(--save_freq).",
            kept_count,
            gigabytes(size),
            disk_folder,
            gigabytes(free),
        )


def gigabytes(count: float) -> str:
    """Return a number of bytes as readable text."""
    return f"{count / 1e9:.2f} GB" if count >= 1e7 else f"{count / 1e6:.2f} MB"


def check_memory(policy: PreTrainedPolicy, config: TrainConfig, accelerator: Accelerator) -> None:
    """Raise an error if a training step exceeds the device's memory; warn if it may exceed the free memory.

    The estimate is a lower bound: activations count half in bfloat16, and not at all if the backward pass recomputes
    them; where processes share a step, the activations of one piece count.

    Raises:
        OutOfMemoryError: a step needs more than the total memory.
    """
    device = accelerator.device.type
    memory = memory_of(device)
    if memory is None:
        return
    sample_count = _concurrent_samples(policy, config, accelerator)
    summary = summarize(policy, sample_count)
    model = summary.model_bytes // (accelerator.num_processes if config.parallelism.splits else 1)
    activations = 0 if config.gradient_checkpointing else summary.activation_bytes
    activations //= 1 if accelerator.mixed_precision == "no" else 2
    available = f"this {'GPU' if device == 'cuda' else 'machine'} has {size(memory.total)}"
    remedy = LESS_TO_TRAIN
    if model > memory.total:
        remedy = "Choose a smaller policy, or split it over several GPUs with --parallelism.dp_shard=-1."
    estimate = (
        f"A training step takes at least {size(model + activations)} of memory (weights, gradients and AdamW {size(model)}, "
        f"activations of {sample_count} samples {size(activations)})"
    )
    if model + activations > memory.total:
        raise OutOfMemoryError(f"{estimate}, and {available}. {remedy}")
    if model + activations - summary.weight_bytes > WARN_SHARE * memory.free:  # weights are loaded
        logger.warning(
            "%s; %s, of which %s are free. It may run out. %s", estimate, available, size(memory.free), remedy
        )


def _concurrent_samples(policy: PreTrainedPolicy, config: TrainConfig, accelerator: Accelerator) -> int:
    """Return the minimum number of samples whose activations a step keeps at the same time."""
    trained = sum(parameter.numel() for parameter in policy.parameters() if parameter.requires_grad)
    is_single = accelerator.device.type == "cpu" and accelerator.num_processes == 1
    requested = config.cpu_processes
    if not is_single or requested == 1 or (requested is None and trained > SMALL):
        return config.batch_size
    count = samples_per_step(config, accelerator)
    return min(config.batch_size, count // default_part_count(count, requested or cores()))


def check_rename_map(rename_map: Mapping[str, str], features: Sequence[str]) -> None:
    """Raise a `ConfigError` if the map contains an unknown name, or maps two names to one."""
    for source in rename_map:
        if source not in features:
            raise ConfigError(
                f"--rename_map leads from '{source}', which the dataset does not have, to '{rename_map[source]}'; the dataset has "
                f"{', '.join(features)}.{did_you_mean(source, features)}"
            )
    targets = [rename_map.get(feature, feature) for feature in features]
    shared = sorted({target for target in targets if targets.count(target) > 1})
    if shared:
        raise ConfigError(f"--rename_map leads two features to '{shared[0]}'. Give each a name of its own.")


def check_sizes(
    policy: PolicyConfig, offered: Mapping[str, PolicyFeature], rename_map: Mapping[str, str] | None = None
) -> None:
    """Raise a `FeatureError` if state or action is missing, or larger than the policy's limit."""
    for key in dict.fromkeys([*(key for key in policy.features if not is_image_key(key)), STATE, ACTION]):
        if key not in offered:
            faults = vector_map_faults(policy, offered, rename_map or {}, "the dataset")
            advice = faults or (
                f"{did_you_mean(key, offered)} If it has it under another name, give "
                f'--rename_map=\'{{"NAME": "{key}"}}\'.'
            )
            raise FeatureError(
                f"The policy needs '{key}', the dataset has {', '.join(offered)}. {advice.strip()}"
            )
    limits = (
        (STATE, "max_state_dim", policy.max_state_dim),
        (ACTION, "max_action_dim", policy.max_action_dim),
    )
    for key, limit, most in limits:
        shape = offered[key].shape if key in offered else (0,)
        if len(shape) != 1:
            raise FeatureError(f"'{key}' has the shape {shape} in the dataset: the policy takes a vector.")
        if most is not None and shape[0] > most:
            raise FeatureError(
                f"'{key}' has {shape[0]} values in the dataset, the policy takes {most} at most. Raise --policy.{limit} "
                "(a pretrained policy can't be widened: its weights have that size)."
            )


def check_statistics(policy: PolicyConfig, statistics: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Raise a `StatisticsError` unless every normalized feature has finite statistics."""
    for key, feature in policy.features.items():
        mode = NormalizationMode(
            policy.normalization_mapping.get(feature.type.value, NormalizationMode.IDENTITY)
        )
        for name in STATISTICS_OF[mode]:
            values = statistics.get(key, {}).get(name)
            if values is None:
                raise StatisticsError(
                    f"The dataset has no statistic '{name}' of '{key}', which {mode.value} normalization needs; it has "
                    f"{', '.join(statistics.get(key, {})) or 'none of it'}. Choose another --policy.normalization_mapping, or "
                    "write the dataset's statistics anew."
                )
            if not np.isfinite(values).all():
                raise StatisticsError(
                    f"The statistic '{name}' of '{key}' is not finite: {np.asarray(values).ravel()[:8]}. The dataset holds "
                    "NaN or infinity, or its meta folder is damaged: check it, or fetch it again."
                )


def check_tasks(source: Source) -> None:
    """Raise a `DatasetError` if an episode that is used has an empty instruction."""
    table = source.meta.episodes
    empty = [number for number in source.episodes if not all(task.strip() for task in table[number].tasks)]
    if empty:
        raise DatasetError(
            f"{len(empty)} of {len(source.episodes)} episodes of {source.section.name} have an empty task, such as episode "
            f"{empty[0]}: the policy could not know what to do. Write the instruction into the dataset's tasks, or leave them "
            f"out with --dataset.exclude_episodes={json.dumps(empty[:20])}."
        )


def note_chunk(policy: PolicyConfig, sources: Sequence[Source]) -> None:
    """Log a warning if a chunk is longer than most episodes: many of its actions are then padding."""
    lengths = [source.meta.episodes[number].length for source in sources for number in source.episodes]
    too_long = long_chunk(policy, sources[0].meta.fps, lengths)
    if too_long is not None:
        logger.warning("%s", too_long)


def long_chunk(policy: PolicyConfig, fps: float, lengths: Iterable[int]) -> str | None:
    """Return the warning about a chunk that is longer than most episodes; None if it is not."""
    chunk, ordered = policy.chunk_size, sorted(lengths)
    typical = ordered[len(ordered) // 2] if ordered else 0
    if chunk <= typical:
        return None
    return (
        f"A chunk of {chunk} actions lasts {chunk / fps:.1f} s at {fps:g} frames a second, a typical episode only "
        f"{typical / fps:.1f} s. Lower --policy.chunk_size (and --policy.n_action_steps)."
    )


def match_table(policy: PolicyConfig, source: Source) -> str:
    """Return a table of the features that the policy expects, and the matching ones of the dataset."""
    inputs, outputs = source.features()
    names = {source.rename_map.get(key, key): key for key in source.meta.features}
    shown = {}
    for key, feature in {**inputs, **outputs}.items():
        parts = [] if is_image_key(key) else flat_names(source.meta.features[names[key]].names)
        shown[key] = f"{names[key]} {feature.shape}" + (f": {', '.join(parts)}" if parts else "")
    return side_by_side(policy.features, shown, source.section.name)

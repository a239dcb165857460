"""What would go wrong after hours is said before the first step: cameras, state and action, statistics, tasks."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from torch import nn

from smolact.datasets.depth import depth_story
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

NEAR = 0.9
"""A step that takes more than this share of the free memory may not fit: what it takes is estimated from below."""


def check_sources(policy: PolicyConfig, sources: Sequence[Source], statistics: Statistics) -> None:
    """Stop before the first step if policy and datasets do not fit together.

    Args:
        policy: the configuration of the policy that is to be trained.
        sources: what it is to learn from.
        statistics: what it is to normalize with; under the dataset's names if there is one dataset.

    Raises:
        ConfigError: the rename map names what the dataset does not have, or maps two features to one.
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
    """Stop if the dataset's names and sizes do not fit the policy; its frames are not needed for that.

    Raises:
        ConfigError: the rename map names what the dataset does not have, or maps two features to one.
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
    """Say which cameras are left out since they are depth cameras; raise a `ConfigError` if the map leads one to the policy."""
    story = depth_story(meta)
    if story is None:
        return
    led = [key for key in rename_map if key in meta.depth_keys]
    if led:
        raise ConfigError(
            f"--rename_map leads '{led[0]}' to the policy, and it is a depth camera: no policy reads depth. Leave it out of "
            f"the map; cameras in colour are {', '.join(meta.color_keys) or 'none'}."
        )
    logger.warning("%s", story)


def check_evaluation(policy: PolicyConfig, config: TrainConfig) -> None:
    """Make the environment of `--env.type` once, check that the policy fits it, and play an episode at random.

    Raises:
        EnvironmentNotFoundError, MissingDependencyError, ConfigError: it can't be made, or tells no task or no success.
        FeatureError: the policy needs what it does not have.
    """
    env = config.env
    if env.type is None:
        return
    is_used = 0 < config.eval_freq <= config.steps
    if not is_used:
        logger.warning(
            "--env.type=%s is not used: --eval_freq=%d never comes in %d steps.",
            env.type,
            config.eval_freq,
            config.steps,
        )
    from smolact.envs.factory import make_env
    from smolact.envs.mapping import rehearse

    with make_env(env.type, task=env.task, mapping=env.mapping, render=None, **env.kwargs) as environment:
        offered = {config.rename_map.get(key, key): feature for key, feature in environment.features.items()}
        cameras = {key: feature for key, feature in offered.items() if is_image_key(key)}
        check_cameras(policy, cameras, config.rename_map, "the environment")
        check_env_sizes(policy, offered, config.rename_map)
        if is_used:
            rehearse(environment[0])


def note_prompts(preprocess: ProcessorPipeline, tasks: Iterable[str]) -> None:
    """Say it if instructions are longer than what the policy reads: their ends would be cut off in every sample."""
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
    """Stop if not one checkpoint fits on the disk; say it if the run's checkpoints do not.

    Raises:
        WriteError: there is no room for a checkpoint: weights, and two moments of each one that trains.
    """
    if not config.save_checkpoint:
        return
    weights = sum(parameter.numel() * parameter.element_size() for parameter in policy.parameters())
    moments = sum(2 * p.numel() * p.element_size() for p in policy.parameters() if p.requires_grad)
    size = weights + moments
    place = next(folder for folder in (run.absolute(), *run.absolute().parents) if folder.exists())
    free = shutil.disk_usage(place).free
    planned = 1 + (config.steps - 1) // config.save_freq if config.save_freq else 1
    kept = min(planned, config.keep_last + 1) if config.keep_last else planned
    if config.keep_last and config.keep_every:
        kept += config.steps // config.keep_every
    if size > free:
        raise WriteError(
            f"A checkpoint of this run takes {gigabytes(size)}, and {place} has {gigabytes(free)} left. Free some space, "
            "or choose another disk with --output_dir."
        )
    if size * kept > free:
        logger.warning(
            "The run keeps up to %d checkpoints of %s each, and %s has %s left. Keep fewer (--keep_last=3), or save less often "
            "(--save_freq).",
            kept,
            gigabytes(size),
            place,
            gigabytes(free),
        )


def gigabytes(count: float) -> str:
    """So many bytes, for a person."""
    return f"{count / 1e9:.2f} GB" if count >= 1e7 else f"{count / 1e6:.2f} MB"


def check_memory(policy: PreTrainedPolicy, config: TrainConfig, accelerator: Accelerator) -> None:
    """Stop if a training step can't fit into the memory of the device; warn if it hardly fits into what is free.

    The estimate is a lower bound: activations count half in bfloat16, and not at all if they are computed again in the
    backward pass; where processes share a step, those of one piece of it count.

    Raises:
        OutOfMemoryError: a step takes more than the memory that there is.
    """
    device = accelerator.device.type
    memory = memory_of(device)
    if memory is None:
        return
    at_once = _samples_at_once(policy, config, accelerator)
    summary = summarize(policy, at_once)
    model = summary.model_bytes // (accelerator.num_processes if config.parallelism.splits else 1)
    kept = 0 if config.gradient_checkpointing else summary.activation_bytes
    kept //= 1 if accelerator.mixed_precision == "no" else 2
    there = f"this {'GPU' if device == 'cuda' else 'machine'} has {size(memory.total)}"
    less = LESS_TO_TRAIN
    if model > memory.total:
        less = "Choose a smaller policy, or split it over several GPUs with --parallelism.dp_shard=-1."
    story = (
        f"A training step takes at least {size(model + kept)} of memory (weights, gradients and AdamW {size(model)}, "
        f"activations of {at_once} samples {size(kept)})"
    )
    if model + kept > memory.total:
        raise OutOfMemoryError(f"{story}, and {there}. {less}")
    if model + kept - summary.weight_bytes > NEAR * memory.free:  # the weights are there already
        logger.warning(
            "%s; %s, of which %s are free. It may run out. %s", story, there, size(memory.free), less
        )


def _samples_at_once(policy: PreTrainedPolicy, config: TrainConfig, accelerator: Accelerator) -> int:
    """Of how many samples a step keeps activations at the same time, at least."""
    trained = sum(parameter.numel() for parameter in policy.parameters() if parameter.requires_grad)
    is_alone = accelerator.device.type == "cpu" and accelerator.num_processes == 1
    asked = config.cpu_processes
    if not is_alone or asked == 1 or (asked is None and trained > SMALL):
        return config.batch_size
    count = samples_per_step(config, accelerator)
    return min(config.batch_size, count // default_part_count(count, asked or cores()))


def check_rename_map(rename_map: Mapping[str, str], features: Sequence[str]) -> None:
    """Raise a `ConfigError` if the map starts from a name that is not there, or leads two names to one."""
    for source in rename_map:
        if source not in features:
            raise ConfigError(
                f"--rename_map leads from '{source}', which the dataset does not have, to '{rename_map[source]}'; the dataset has "
                f"{', '.join(features)}.{did_you_mean(source, features)}"
            )
    targets = [rename_map.get(feature, feature) for feature in features]
    twice = sorted({target for target in targets if targets.count(target) > 1})
    if twice:
        raise ConfigError(f"--rename_map leads two features to '{twice[0]}'. Give each a name of its own.")


def check_sizes(
    policy: PolicyConfig, offered: Mapping[str, PolicyFeature], rename_map: Mapping[str, str] | None = None
) -> None:
    """Raise a `FeatureError` if state or action is missing, or larger than what the policy can take.

    Args:
        policy: whose sizes count.
        offered: what the dataset has, already renamed.
        rename_map: how it was renamed, for the message.
    """
    wanted = {**policy.input_features, **policy.output_features}
    for key in dict.fromkeys([*(key for key in wanted if not is_image_key(key)), STATE, ACTION]):
        if key not in offered:
            faults = vector_map_faults(policy, offered, rename_map or {}, "the dataset")
            advice = faults or (
                f"{did_you_mean(key, offered)} If it has it under another name, give "
                f'--rename_map=\'{{"NAME": "{key}"}}\'.'
            )
            raise FeatureError(
                f"The policy needs '{key}', the dataset has {', '.join(offered)}. {advice.strip()}"
            )
    for key, limit in ((STATE, "max_state_dim"), (ACTION, "max_action_dim")):
        shape = offered[key].shape if key in offered else (0,)
        most = getattr(policy, limit, None)
        if len(shape) != 1:
            raise FeatureError(f"'{key}' has the shape {shape} in the dataset: the policy takes a vector.")
        if most is not None and shape[0] > most:
            raise FeatureError(
                f"'{key}' has {shape[0]} values in the dataset, the policy takes {most} at most. Raise --policy.{limit} "
                "(a pretrained policy can't be widened: its weights have that size)."
            )


def check_statistics(policy: PolicyConfig, statistics: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Raise a `StatisticsError` if something that is normalized has no statistics, or none that are finite."""
    modes: Mapping[str, NormalizationMode] = getattr(policy, "normalization_mapping", {})
    for key, feature in {**policy.input_features, **policy.output_features}.items():
        mode = NormalizationMode(modes.get(feature.type.value, NormalizationMode.IDENTITY))
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
    bare = [number for number in source.episodes if not all(task.strip() for task in table[number].tasks)]
    if bare:
        raise DatasetError(
            f"{len(bare)} of {len(source.episodes)} episodes of {source.section.name} have an empty task, such as episode "
            f"{bare[0]}: the policy could not know what to do. Write the instruction into the dataset's tasks, or leave them "
            f"out with --dataset.exclude_episodes={json.dumps(bare[:20])}."
        )


def note_chunk(policy: PolicyConfig, sources: Sequence[Source]) -> None:
    """Say it if a chunk is longer than most episodes: much of what the policy would learn is then padding."""
    lengths = [source.meta.episodes[number].length for source in sources for number in source.episodes]
    too_long = long_chunk(policy, sources[0].meta.fps, lengths)
    if too_long is not None:
        logger.warning("%s", too_long)


def long_chunk(policy: PolicyConfig, fps: float, lengths: Iterable[int]) -> str | None:
    """What to say of a chunk that is longer than most episodes; None if it is not."""
    chunk, ordered = getattr(policy, "chunk_size", 1), sorted(lengths)
    typical = ordered[len(ordered) // 2] if ordered else 0
    if chunk <= typical:
        return None
    return (
        f"A chunk of {chunk} actions lasts {chunk / fps:.1f} s at {fps:g} frames a second, a typical episode only "
        f"{typical / fps:.1f} s. Lower --policy.chunk_size (and --policy.n_action_steps)."
    )


def match_table(policy: PolicyConfig, source: Source) -> str:
    """Two columns: what the policy expects, and what of the dataset it gets for that."""
    inputs, outputs = source.features()
    names = {source.rename_map.get(key, key): key for key in source.meta.features}
    shown = {}
    for key, feature in {**inputs, **outputs}.items():
        parts = [] if is_image_key(key) else flat_names(source.meta.features[names[key]].names)
        shown[key] = f"{names[key]} {feature.shape}" + (f": {', '.join(parts)}" if parts else "")
    expected = {**policy.input_features, **policy.output_features}
    return side_by_side(expected, shown, source.section.name)

"""Construction and loading of policies by type, checkpoint folder or Hub id. Configuration classes are imported without torch."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

from smolact.errors import ConfigError
from smolact.machine import SMALL
from smolact.policies.configuration import PolicyConfig, find_policy, get_config_class, read_config_file
from smolact.registry import POLICIES

if TYPE_CHECKING:
    import torch

    from smolact.policies.base import PreTrainedPolicy
    from smolact.policies.common.chunking import Engine
    from smolact.processors.pipeline import ProcessorPipeline
    from smolact.types import Statistics

__all__ = [
    "LoadedEngine",
    "LoadedPolicy",
    "get_config_class",
    "get_policy_class",
    "load_policy",
    "load_processors",
    "make_policy",
    "make_pre_post_processors",
]

logger = logging.getLogger(__name__)

POLICY_TYPES = POLICIES.builtin


class LoadedPolicy(NamedTuple):
    """A policy with its preprocessor and postprocessor."""

    policy: PreTrainedPolicy
    preprocess: ProcessorPipeline
    postprocess: ProcessorPipeline


class LoadedEngine(NamedTuple):
    """An engine with its preprocessor and postprocessor."""

    policy: Engine
    preprocess: ProcessorPipeline
    postprocess: ProcessorPipeline


def get_policy_class(kind: str) -> type[PreTrainedPolicy]:
    """Return the class of a policy type. Raises as `get_config_class` does."""
    policy_class: type[PreTrainedPolicy] = POLICIES.part_of(kind, get_config_class(kind).policy_class)
    return policy_class


def make_policy(config: PolicyConfig, *, pretrained_vlm: bool | None = None) -> PreTrainedPolicy:
    """Build an untrained policy.

    Args:
        config: its configuration, with features.
        pretrained_vlm: for a policy with a VLM: load its weights; the policy's choice when None.
    """
    from smolact.policies.vlm_policy import VLMPolicy

    policy_class = get_policy_class(config.type)
    if issubclass(policy_class, VLMPolicy):
        return policy_class(config, pretrained_vlm=pretrained_vlm)
    return policy_class(config)


def make_pre_post_processors(
    policy: PreTrainedPolicy,
    dataset_stats: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    rename_map: Mapping[str, str] | None = None,
) -> tuple[ProcessorPipeline, ProcessorPipeline]:
    """Make new processors for a policy, which normalize with these statistics.

    Raises:
        StatisticsError: a statistic is missing or not finite.
        NotFoundError: the tokenizer is not here.
    """
    return policy.make_processors(dataset_stats, rename_map=rename_map)


@overload
def load_policy(
    folder_or_id: str | Path,
    *,
    device: str | None = None,
    dtype: torch.dtype | None = None,
    stats_key: str | None = None,
    stats: str | Path | Mapping[str, Mapping[str, Any]] | None = None,
    rename_map: Mapping[str, str] | None = None,
    revision: str | None = None,
    engine: Literal[False] = False,
    **overrides: Any,
) -> LoadedPolicy: ...


@overload
def load_policy(
    folder_or_id: str | Path,
    *,
    device: str | None = None,
    dtype: torch.dtype | None = None,
    stats_key: str | None = None,
    stats: str | Path | Mapping[str, Mapping[str, Any]] | None = None,
    rename_map: Mapping[str, str] | None = None,
    revision: str | None = None,
    engine: Literal[True] | Mapping[str, Any],
    **overrides: Any,
) -> LoadedEngine: ...


def load_policy(
    folder_or_id: str | Path,
    *,
    device: str | None = None,
    dtype: torch.dtype | None = None,
    stats_key: str | None = None,
    stats: str | Path | Mapping[str, Mapping[str, Any]] | None = None,
    rename_map: Mapping[str, str] | None = None,
    revision: str | None = None,
    engine: bool | Mapping[str, Any] = False,
    **overrides: Any,
) -> LoadedPolicy | LoadedEngine:
    """Load a trained policy and its processors: `policy, preprocess, postprocess = load_policy(…)`.

    Args:
        folder_or_id: a folder of smolact or LeRobot (`pretrained_model`, a checkpoint, or a run with its last one), or a Hub id.
        device: the device to run on; this machine's best one when None.
        dtype: of the weights; float32 when None, or for an engine the fastest dtype that it supports.
        stats_key: the dataset whose statistics are used, if the checkpoint holds several.
        stats: a dataset (a folder or a Hub id) or its statistics, for missing ones; else the first batch that needs one raises.
        rename_map: names of the robot, dataset or environment to the policy's; replaces the checkpoint's map.
        revision: the revision on the Hub.
        engine: return an engine, which only predicts, instead of the policy: true, or its settings. It takes over the weights.
        overrides: settings of the policy to change, by name.

    Raises:
        NotFoundError, HubError: the checkpoint can't be found or fetched.
        CheckpointError: a file is damaged; `WeightsError` if weights do not fit.
        StatisticsError: there are none for `stats_key`, or `stats` lack a missing one, too.
        DeviceError: this machine does not have the device.
        ConfigError: the policy's type is unknown, or a setting is invalid.
    """
    import torch

    from smolact.policies.sharing import CHECKPOINT_PATTERNS
    from smolact.processors.steps import find_device

    folder = find_policy(folder_or_id, patterns=CHECKPOINT_PATTERNS, revision=revision)
    raw = read_config_file(folder)
    device = str(find_device(device)) if device else best_device()
    config = get_config_class(str(raw.get("type"))).in_folder(folder, {**overrides, "device": device})
    policy = get_policy_class(config.type).from_pretrained(
        folder, config=config, dtype=(dtype or torch.float32) if engine is False else None
    )
    processors = load_processors(
        folder, policy, stats_key=stats_key, stats=stats, rename_map=rename_map, changed=overrides
    )
    policy.to(device)
    if engine is False:
        return LoadedPolicy(policy, *processors)
    settings = {} if engine is True else engine
    built_engine = policy.build_engine(**{"dtype": dtype, **policy.inference_only_defaults, **settings})
    if device.startswith("cuda"):
        built_engine.warm_up()
    return LoadedEngine(built_engine, *processors)


def load_processors(
    folder: Path,
    policy: PreTrainedPolicy,
    *,
    stats_key: str | None = None,
    stats: str | Path | Mapping[str, Mapping[str, Any]] | None = None,
    rename_map: Mapping[str, str] | None = None,
    changed: Collection[str] = (),
) -> tuple[ProcessorPipeline, ProcessorPipeline]:
    """Load a checkpoint's processors; for an older checkpoint, make them from the statistics among its weights.

    Args:
        stats_key, stats, rename_map: as in `load_policy`.
        changed: settings of the policy that were overridden; steps that store them are changed, too.

    Raises:
        CheckpointError: a file is damaged.
        StatisticsError: there are none for `stats_key`, or `stats` lack a missing one, too.
        NotFoundError: the tokenizer is not here.
    """
    from smolact.backbones.weights import read_tensors, weight_files
    from smolact.processors.legacy import is_statistics_key, state_of_old_weights
    from smolact.processors.pipeline import ProcessorPipeline, processor_files, rename_map_of
    from smolact.processors.statistics import STATS_KEY_FLAG, fill_statistics, rename_statistics

    config = policy.config
    files = processor_files(folder)
    if files is None:
        preprocess, postprocess = make_pre_post_processors(policy, rename_map=rename_map)
        state = state_of_old_weights(read_tensors(weight_files(folder), is_statistics_key))
        for step in (*preprocess.steps, *postprocess.steps):
            if step.registry_name in ("normalizer_processor", "unnormalizer_processor"):
                step.stats_key = stats_key  # type: ignore[attr-defined]
                step.load_state_dict(state)
    else:
        settings = config.processor_settings(changed)
        pre_path, post_path = (folder / name for name in files)
        flags = {step: f"--policy.{', --policy.'.join(sorted(changed))}" for step in settings}
        flags |= {"rename_observations_processor": "--rename_map"} if rename_map else {}
        flags |= {"normalizer_processor": STATS_KEY_FLAG} if stats_key else {}
        _check_steps_exist(flags, (pre_path, post_path))
        for name, parts in policy.processor_parts().items():
            settings.setdefault(name, {}).update(parts)
        settings.setdefault("device_processor", {})["device"] = config.device or "cpu"
        if rename_map:
            settings["rename_observations_processor"] = {"rename_map": dict(rename_map)}
        for name in ("normalizer_processor", "unnormalizer_processor"):
            settings.setdefault(name, {})["stats_key"] = stats_key
        preprocess = ProcessorPipeline.from_pretrained(
            folder, pre_path.name, overrides=_settings_of_steps(settings, pre_path)
        )
        settings["device_processor"]["device"] = "cpu"
        postprocess = ProcessorPipeline.from_pretrained(
            folder, post_path.name, overrides=_settings_of_steps(settings, post_path)
        )
    if stats is not None:
        statistics = stats if isinstance(stats, Mapping) else statistics_at(stats)
        statistics = rename_statistics(statistics, rename_map_of(preprocess))
        source = "the statistics given" if isinstance(stats, Mapping) else str(stats)
        filled = fill_statistics((preprocess, postprocess), statistics, source)
        if filled:
            logger.info("Statistics of %s: %s.", source, ", ".join(filled))
        else:
            logger.warning("The checkpoint has all statistics that it needs: %s has no effect.", source)
    return policy.fill_in_processor(preprocess), postprocess


def _settings_of_steps(settings: Mapping[str, dict[str, Any]], path: Path) -> dict[str, dict[str, Any]]:
    from smolact.processors.pipeline import step_names

    return {name: settings[name] for name in step_names(path) if name in settings}


def _check_steps_exist(flags: Mapping[str, str], paths: Sequence[Path]) -> None:
    """Raise a `ConfigError` if a flag is for a step that the checkpoint's processors do not have."""
    from smolact.processors.pipeline import step_names

    available = {name for path in paths for name in step_names(path)}
    for step, flag in flags.items():
        if step not in available:
            raise ConfigError(
                f"{flag} is for the step '{step}', and the checkpoint's processors in {paths[0].parent} have none: they have "
                f"{', '.join(sorted(available))}. Leave it out."
            )


def statistics_at(dataset: str | Path) -> Statistics:
    """Return the statistics of the dataset in a folder or on the Hub.

    Raises:
        NotFoundError, HubError, DatasetError: the dataset can't be found or fetched, or is damaged.
    """
    from smolact.datasets.metadata import LeRobotDatasetMetadata
    from smolact.hub import find_folder

    return LeRobotDatasetMetadata(find_folder(dataset, "dataset", patterns=["meta/**"])).stats


def is_small(folder_or_id: str | Path) -> bool:
    """Return whether a checkpoint's weights are so few (`machine.SMALL`) that threads only wait for each other."""
    sizes = [file.stat().st_size for file in find_policy(folder_or_id).glob("model*.safetensors")]
    return 0 < sum(sizes) <= 4 * SMALL  # without weights it is an adapter, whose base may be large


def best_device() -> str:
    """Return the first available device of `cuda`, `mps` and `cpu`."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"

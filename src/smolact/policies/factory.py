"""From a name to a policy: a type, a checkpoint folder, a Hub id. Configuration classes come without torch."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

from smolact.errors import ConfigError, did_you_mean
from smolact.policies.configuration import PolicyConfig, find_policy, read_config_file

if TYPE_CHECKING:
    import torch

    from smolact.policies.base import PreTrainedPolicy
    from smolact.policies.common.chunking import Engine
    from smolact.processors.pipeline import ProcessorPipeline
    from smolact.types import Statistics

logger = logging.getLogger(__name__)

_POLICIES = {"smolvla": "SmolVLA", "smolandfast": "SMOLANDFAST"}
"""Type name to the stem of its class names: `SmolVLAConfig` in `policies/smolvla/configuration_smolvla.py`, and so on."""

POLICY_TYPES = tuple(_POLICIES)


class LoadedPolicy(NamedTuple):
    """A policy with what stands before and behind it."""

    policy: PreTrainedPolicy
    preprocess: ProcessorPipeline
    postprocess: ProcessorPipeline


class LoadedEngine(NamedTuple):
    """An engine in the policy's place, with what stands before and behind it."""

    policy: Engine
    preprocess: ProcessorPipeline
    postprocess: ProcessorPipeline


def _find(kind: str, module: str, name: str) -> Any:
    if kind not in _POLICIES:
        raise ConfigError(
            f"There is no policy type '{kind}'; known: {', '.join(POLICY_TYPES)}.{did_you_mean(kind, POLICY_TYPES)}"
        )
    found = importlib.import_module(f"smolact.policies.{kind}.{module}_{kind}")
    return getattr(found, name.format(stem=_POLICIES[kind], kind=kind))


def get_config_class(kind: str) -> type[PolicyConfig]:
    """The configuration class of a policy type.

    Raises:
        ConfigError: there is no such type.
    """
    config_class: type[PolicyConfig] = _find(kind, "configuration", "{stem}Config")
    return config_class


def get_policy_class(kind: str) -> type[PreTrainedPolicy]:
    """The class of a policy type.

    Raises:
        ConfigError: there is no such type.
    """
    policy_class: type[PreTrainedPolicy] = _find(kind, "modeling", "{stem}Policy")
    return policy_class


def make_policy(config: PolicyConfig, *, pretrained_vlm: bool | None = None) -> PreTrainedPolicy:
    """A new policy, not trained yet.

    Args:
        config: what to build, with features.
        pretrained_vlm: begin from the VLM's weights; what `config.load_vlm_weights` says when not given.
    """
    return get_policy_class(config.type)(config, pretrained_vlm=pretrained_vlm)  # type: ignore[call-arg]


def make_pre_post_processors(
    policy: PreTrainedPolicy,
    dataset_stats: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    rename_map: Mapping[str, str] | None = None,
) -> tuple[ProcessorPipeline, ProcessorPipeline]:
    """Fresh processors for a policy, which normalize with these statistics.

    Raises:
        StatisticsError: a statistic is missing or not finite.
        NotFoundError: the tokenizer is not here.
    """
    make = _find(policy.config.type, "processor", "make_{kind}_pre_post_processors")
    parts = {name: part for step in policy.processor_parts().values() for name, part in step.items()}
    pipelines: tuple[ProcessorPipeline, ProcessorPipeline] = make(
        policy.config, dataset_stats, rename_map=rename_map, **parts
    )
    return pipelines


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
    """A trained policy and its processors, ready to predict: `policy, preprocess, postprocess = load_policy(…)`.

    Args:
        folder_or_id: a checkpoint folder of ours or of LeRobot (`pretrained_model`, the checkpoint that holds it, or a
            run, whose last checkpoint is taken), or a Hub id.
        device: where it runs; the best device of this machine when not given.
        dtype: of the weights; float32 when not given, and for an engine the quicker one of those that it knows.
        stats_key: which dataset's statistics, where a checkpoint holds several.
        stats: a dataset (a folder or a Hub id), or its statistics, for what the checkpoint lacks. Without them it opens as
            it is, and the first batch that needs one raises.
        rename_map: names of the robot, dataset or environment to the policy's, in the place of the map that the checkpoint
            keeps.
        revision: on the Hub.
        engine: give an engine, which only predicts, instead of the policy: true, or its settings. It takes the policy's weights.
        overrides: settings to change, by the names of the policy's configuration.

    Raises:
        NotFoundError, HubError: it is not there.
        CheckpointError: a file is damaged; `WeightsError` if weights do not fit.
        StatisticsError: there are none for `stats_key`, or `stats` have not what is lacking.
        DeviceError: the device is not there.
        ConfigError: the policy's type is not known, or a setting can't work.
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
    built = policy.build_engine(**{"dtype": dtype, **policy.inference_only_defaults, **settings})
    if device.startswith("cuda"):
        built.warm_up()
    return LoadedEngine(built, *processors)


def load_processors(
    folder: Path,
    policy: PreTrainedPolicy,
    *,
    stats_key: str | None = None,
    stats: str | Path | Mapping[str, Mapping[str, Any]] | None = None,
    rename_map: Mapping[str, str] | None = None,
    changed: Collection[str] = (),
) -> tuple[ProcessorPipeline, ProcessorPipeline]:
    """The processors that a checkpoint keeps; for an older one, made from the statistics among its weights.

    Args:
        folder: the checkpoint's.
        policy: loaded from there.
        stats_key, stats, rename_map: as `load_policy` takes them.
        changed: settings of the policy that differ from the file's on purpose; steps that keep them follow.

    Raises:
        CheckpointError: a file is damaged.
        StatisticsError: there are none for `stats_key`, or `stats` have not what is lacking.
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
        before, behind = (folder / name for name in files)
        asked = {step: f"--policy.{', --policy.'.join(sorted(changed))}" for step in settings}
        asked |= {"rename_observations_processor": "--rename_map"} if rename_map else {}
        asked |= {"normalizer_processor": STATS_KEY_FLAG} if stats_key else {}
        _check_taken(asked, (before, behind))
        for name, parts in policy.processor_parts().items():
            settings.setdefault(name, {}).update(parts)
        settings.setdefault("device_processor", {})["device"] = config.device or "cpu"
        if rename_map:
            settings["rename_observations_processor"] = {"rename_map": dict(rename_map)}
        for name in ("normalizer_processor", "unnormalizer_processor"):
            settings.setdefault(name, {})["stats_key"] = stats_key
        preprocess = ProcessorPipeline.from_pretrained(
            folder, before.name, overrides=_of_steps(settings, before)
        )
        settings["device_processor"]["device"] = "cpu"
        postprocess = ProcessorPipeline.from_pretrained(
            folder, behind.name, overrides=_of_steps(settings, behind)
        )
    if stats is not None:
        found = stats if isinstance(stats, Mapping) else statistics_at(stats)
        found = rename_statistics(found, rename_map_of(preprocess))
        source = "the statistics given" if isinstance(stats, Mapping) else str(stats)
        filled = fill_statistics((preprocess, postprocess), found, source)
        if filled:
            logger.info("Statistics of %s: %s.", source, ", ".join(filled))
        else:
            logger.warning("The checkpoint has all statistics that it needs: %s has no effect.", source)
    return policy.fill_in_processor(preprocess), postprocess


def _of_steps(settings: Mapping[str, dict[str, Any]], path: Path) -> dict[str, dict[str, Any]]:
    from smolact.processors.pipeline import step_names

    return {name: settings[name] for name in step_names(path) if name in settings}


def _check_taken(asked: Mapping[str, str], paths: Sequence[Path]) -> None:
    """Raise a `ConfigError` if what a flag asks for is a step's, and the checkpoint's processors have no such step.

    Args:
        asked: a step's registered name to the flag.
        paths: the checkpoint's processor files.
    """
    from smolact.processors.pipeline import step_names

    there = {name for path in paths for name in step_names(path)}
    for step, flag in asked.items():
        if step not in there:
            raise ConfigError(
                f"{flag} is for the step '{step}', and the checkpoint's processors in {paths[0].parent} have none: they have "
                f"{', '.join(sorted(there))}. Leave it out."
            )


def statistics_at(dataset: str | Path) -> Statistics:
    """The statistics of the dataset at a folder or a Hub id.

    Raises:
        NotFoundError, HubError, DatasetError: it is not there, or damaged.
    """
    from smolact.datasets.metadata import LeRobotDatasetMetadata
    from smolact.hub import find_folder

    return LeRobotDatasetMetadata(find_folder(dataset, "dataset", patterns=["meta/**"])).stats


def best_device() -> str:
    """`cuda`, `mps` or `cpu`: the first that is there."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"

"""The initial weights of a run, and its normalization.

| source | weights | trains |
|---|---|---|
| `base` (`--policy.path`) | a policy's checkpoint | as set by its configuration and the flags |
| `vlm` (the default of `--policy.type`) | the VLM's, a new action expert | the expert, and more by flags |
| `random` (`--policy.load_vlm_weights=false`, or a preset without weights) | none | everything, unless a freeze is set by hand |
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smolact.backbones.presets import PRESETS, PRESETS_WITH_WEIGHTS, find_vlm
from smolact.errors import ConfigError
from smolact.policies.base import PreTrainedPolicy
from smolact.policies.configuration import PRETRAINED_MODEL, PolicyConfig
from smolact.policies.factory import (
    LoadedPolicy,
    get_config_class,
    get_policy_class,
    load_policy,
    make_policy,
    make_pre_post_processors,
)
from smolact.policies.vlm_configuration import VLMConfig
from smolact.policies.vlm_policy import VLMPolicy
from smolact.processors.pipeline import ProcessorPipeline
from smolact.training.config import TrainConfig
from smolact.training.sections import BASE, RANDOM, VLM, PolicySection, policy_type_at
from smolact.types import FeatureType, PolicyFeature, Statistics

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PolicyBundle:
    """A policy with its processors, and a sentence about the source of its weights."""

    policy: PreTrainedPolicy
    preprocess: ProcessorPipeline
    postprocess: ProcessorPipeline
    weights_source: str


def policy_config_of(
    config: TrainConfig, inputs: Mapping[str, PolicyFeature], outputs: Mapping[str, PolicyFeature]
) -> tuple[PolicyConfig, str]:
    """Return the configuration of a new run's policy, and the source of its weights.

    Args:
        inputs, outputs: the dataset's features under the policy's names: those that the configuration lacks are added, and
            the sizes are used.

    Returns:
        the configuration, and one of `base`, `vlm`, `random`.

    Raises:
        ConfigError: settings contradict each other, or would freeze random weights.
    """
    section = config.policy
    kind = section.type or policy_type_at(str(section.path))
    config_class = get_config_class(kind)
    if not config_class.uses_cameras:
        inputs = {key: feature for key, feature in inputs.items() if feature.type is not FeatureType.VISUAL}
    if section.path is not None:
        # This policy is not published in the base's repository.
        published: dict[str, Any] = {"push_to_hub": False, "repo_id": None, "private": None}
        values: dict[str, Any] = {**published, "pretrained_path": str(section.path), **section.settings}
        base: PolicyConfig = config_class.from_pretrained(section.path, **values)
        for name, dataset in (("input_features", inputs), ("output_features", outputs)):
            # Names of the checkpoint, sizes of this dataset: states and actions are padded.
            own_features = getattr(base, name) or dataset
            values.setdefault(name, {key: dataset.get(key, feature) for key, feature in own_features.items()})
        return base.replace(**values), BASE
    if not issubclass(config_class, VLMConfig):
        if section.init == VLM:
            raise ConfigError(
                f"--policy.init=vlm loads a VLM's weights, and a '{kind}' policy has no VLM. Leave --policy.init out."
            )
        return config_class(
            **{"input_features": dict(inputs), "output_features": dict(outputs), **section.settings}
        ), RANDOM
    known = {item.name for item in dataclasses.fields(config_class)}
    vlm = str(section.settings.get(config_class.vlm_field, ""))
    source = _source(section, vlm, config_class.vlm_field)
    values = {"input_features": inputs, "output_features": outputs, **section.settings}
    if "load_vlm_weights" in known:
        values["load_vlm_weights"] = source == VLM
    if vlm in PRESETS and "resize_imgs_with_padding" in known - values.keys():
        # At the default size, that of the published models, a small tower would have thousands of patches.
        size = find_vlm(vlm).config.vision_config.image_size
        values["resize_imgs_with_padding"] = (size, size)
        logger.info("Images are fitted into %d×%d, the size of the VLM preset '%s'.", size, size, vlm)
    if source == RANDOM:
        _unfreeze_all(values, section, config_class.freezes)
    return config_class(**values), source


def start_new(
    policy_config: PolicyConfig, source: str, statistics: Statistics, config: TrainConfig, device: str
) -> PolicyBundle:
    """Build the policy of a new run; it normalizes with the dataset's statistics.

    Raises:
        NotFoundError, HubError, CheckpointError: weights are missing or corrupt.
        StatisticsError: a required statistic is missing.
    """
    policy_config = policy_config.replace(device=device)
    if source == BASE:
        policy: PreTrainedPolicy = get_policy_class(policy_config.type).from_pretrained(
            str(config.policy.path), config=policy_config
        )
        weights_source = f"weights from {config.policy.path}"
        if config.peft is not None:
            policy.add_adapters(config.peft.adapter_settings())
            weights_source += ", with new adapters"
    else:
        policy = make_policy(policy_config, pretrained_vlm=source == VLM)
        weights_source = "random weights"
        if source == VLM and isinstance(policy, VLMPolicy):
            weights_source = f"the VLM's weights ({policy.vlm.name}){policy.new_parts}"
    preprocess, postprocess = make_pre_post_processors(policy, statistics, rename_map=config.rename_map)
    return PolicyBundle(policy.to(device), preprocess, postprocess, weights_source)


def start_resumed(checkpoint: Path, settings: Mapping[str, Any], device: str) -> PolicyBundle:
    """Return the policy and processors of a checkpoint, with the statistics of its training."""
    loaded: LoadedPolicy = load_policy(checkpoint / PRETRAINED_MODEL, device=device, **settings)
    return PolicyBundle(*loaded, f"resumed from {checkpoint}")


def _source(section: PolicySection, vlm: str, field: str) -> str:
    """Return `vlm` or `random`, from `--policy.init`, `--policy.load_vlm_weights` and the VLM's name."""
    loads = section.settings.get("load_vlm_weights")
    requested = None if loads is None else VLM if loads else RANDOM
    if section.init is not None and requested is not None and requested != section.init:
        raise ConfigError(
            f"--policy.init={section.init} and --policy.load_vlm_weights={str(loads).lower()} contradict each other. Drop one of "
            "them."
        )
    source = section.init or requested
    if vlm in PRESETS and vlm not in PRESETS_WITH_WEIGHTS:
        if source == VLM:
            raise ConfigError(
                f"The VLM preset '{vlm}' is a shape without weights, so they can't be loaded. Use --policy.init=random, "
                f"or name a VLM with weights: --policy.{field}={PRESETS_WITH_WEIGHTS[0]} (small, learnt on drawings "
                "of the tabletop) or HuggingFaceTB/SmolVLM2-500M-Video-Instruct."
            )
        return RANDOM
    return source or VLM


def _unfreeze_all(values: dict[str, Any], section: PolicySection, freezes: Mapping[str, bool]) -> None:
    """Unfreeze random weights; a freeze that was given stays, if it is confirmed."""
    frozen = []
    for name, freezing in freezes.items():
        if name not in section.settings:
            values[name] = not freezing
        elif values[name] == freezing:
            frozen.append(f"--policy.{name}={str(freezing).lower()}")
    if frozen and not section.allow_frozen_random:
        raise ConfigError(
            f"{', '.join(frozen)} would freeze weights that are random: that part would never learn anything. Drop "
            "the freeze, load weights (--policy.init=vlm or --policy.path=…), or confirm it with "
            "--policy.allow_frozen_random=true."
        )
    if frozen:
        logger.warning("Random weights stay frozen, as asked: %s.", ", ".join(frozen))

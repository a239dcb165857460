"""Where the weights of a run come from, and what it normalizes with: decided once, here, and said.

| source | weights | trains |
|---|---|---|
| `base` (`--policy.path`) | a policy's checkpoint | what its configuration and the flags say |
| `vlm` (the default of `--policy.type`) | the VLM's, a new action expert | the expert, unless flags say more |
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
from smolact.processors.pipeline import ProcessorPipeline
from smolact.training.config import TrainConfig
from smolact.training.sections import BASE, RANDOM, VLM, PolicySection, policy_type_at
from smolact.types import PolicyFeature, Statistics

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PolicyBundle:
    """What a run starts with: a policy with its processors, and one sentence on where its weights come from."""

    policy: PreTrainedPolicy
    preprocess: ProcessorPipeline
    postprocess: ProcessorPipeline
    weights_source: str


def policy_config_of(
    config: TrainConfig,
    explicit: Mapping[str, str],
    inputs: Mapping[str, PolicyFeature],
    outputs: Mapping[str, PolicyFeature],
) -> tuple[PolicyConfig, str]:
    """The configuration that a new run builds its policy from, and where its weights come from.

    Args:
        config: the run's; `policy.type` or `policy.path` is set.
        explicit: which settings were set by hand, and where.
        inputs, outputs: what the dataset offers under the policy's names: the features that the configuration does not
            have, and their sizes.

    Returns:
        the configuration, and one of `base`, `vlm`, `random`.

    Raises:
        ConfigError: settings that contradict each other, or that would freeze random weights.
    """
    section = config.policy
    if section.path is not None:
        kind = section.type or policy_type_at(section.path)
        # Where the base was published is not where this one goes.
        published: dict[str, Any] = {"push_to_hub": False, "repo_id": None, "private": None}
        values: dict[str, Any] = {**published, "pretrained_path": str(section.path), **section.settings}
        base: PolicyConfig = get_config_class(kind).from_pretrained(section.path, **values)
        for name, dataset in (("input_features", inputs), ("output_features", outputs)):
            # The names are the checkpoint's, the sizes this dataset's: states and actions are padded anyway.
            mine = getattr(base, name) or dataset
            values.setdefault(name, {key: dataset.get(key, feature) for key, feature in mine.items()})
        return base.replace(**values), BASE
    assert section.type is not None
    config_class = get_config_class(section.type)
    known = {item.name for item in dataclasses.fields(config_class)}
    vlm = str(section.settings.get(config_class.vlm_field, ""))
    source = _source(section, explicit, vlm, config_class.vlm_field)
    values = {"input_features": inputs, "output_features": outputs, **section.settings}
    if "load_vlm_weights" in known:
        values["load_vlm_weights"] = source == VLM
    if vlm in PRESETS and "resize_imgs_with_padding" in known - values.keys():
        # The default fits the published models; a small tower would make thousands of patches of it.
        size = find_vlm(vlm).config.vision_config.image_size
        values["resize_imgs_with_padding"] = (size, size)
        logger.info("Images are fitted into %d×%d, the size of the VLM preset '%s'.", size, size, vlm)
    if source == RANDOM:
        _free_everything(values, section, explicit, config_class.freezes)
    return config_class(**values), source


def start_new(
    policy_config: PolicyConfig, source: str, statistics: Statistics, config: TrainConfig, device: str
) -> PolicyBundle:
    """Build the policy of a new run; it normalizes with the dataset's statistics.

    Raises:
        NotFoundError, HubError, CheckpointError: weights that are not there, or damaged.
        StatisticsError: a statistic that is needed is missing.
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
        weights_source = (
            f"the VLM's weights ({policy_config.vlm_name}){policy.new_parts}"
            if source == VLM
            else "random weights"
        )
    preprocess, postprocess = make_pre_post_processors(policy, statistics, rename_map=config.rename_map)
    return PolicyBundle(policy.to(device), preprocess, postprocess, weights_source)


def start_resumed(checkpoint: Path, settings: Mapping[str, Any], device: str) -> PolicyBundle:
    """The policy and processors of a checkpoint, with the statistics that it was trained with."""
    loaded: LoadedPolicy = load_policy(checkpoint / PRETRAINED_MODEL, device=device, **settings)
    return PolicyBundle(*loaded, f"resumed from {checkpoint}")


def _source(section: PolicySection, explicit: Mapping[str, str], vlm: str, field: str) -> str:
    """`vlm` or `random`, from `--policy.init`, `--policy.load_vlm_weights` and the VLM's name."""
    flag = explicit.get("policy.load_vlm_weights")
    asked = None if flag is None else VLM if section.settings["load_vlm_weights"] else RANDOM
    if section.init is not None and asked is not None and asked != section.init:
        raise ConfigError(f"--policy.init={section.init} and {flag} contradict each other. Drop one of them.")
    source = section.init or asked
    if vlm in PRESETS and vlm not in PRESETS_WITH_WEIGHTS:
        if source == VLM:
            raise ConfigError(
                f"The VLM preset '{vlm}' is a shape without weights, so they can't be loaded. Use --policy.init=random, "
                f"or name a VLM with weights: --policy.{field}={PRESETS_WITH_WEIGHTS[0]} (small, learnt on drawings "
                "of the tabletop) or HuggingFaceTB/SmolVLM2-500M-Video-Instruct."
            )
        return RANDOM
    return source or VLM


def _free_everything(
    values: dict[str, Any], section: PolicySection, explicit: Mapping[str, str], freezes: Mapping[str, bool]
) -> None:
    """Let random weights learn; a freeze that was set by hand stays, if it is confirmed."""
    frozen = []
    for name, freezing in freezes.items():
        if f"policy.{name}" not in explicit:
            values[name] = not freezing
        elif values[name] == freezing:
            frozen.append(explicit[f"policy.{name}"])
    if frozen and not section.allow_frozen_random:
        raise ConfigError(
            f"{', '.join(frozen)} would freeze weights that are random: that part would never learn anything. Drop "
            "the freeze, load weights (--policy.init=vlm or --policy.path=…), or confirm it with "
            "--policy.allow_frozen_random=true."
        )
    if frozen:
        logger.warning("Random weights stay frozen, as asked: %s.", ", ".join(frozen))

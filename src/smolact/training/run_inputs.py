"""The datasets and the policy of a run, checked against each other before anything is written; and `encode`."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate import Accelerator

from smolact.datasets.reader import LeRobotDataset
from smolact.errors import ConfigError
from smolact.policies.configuration import find_policy
from smolact.policies.embodiment import embodiment_of
from smolact.policies.fit import note_other_robot, usable_names
from smolact.processors.pipeline import rename_map_in
from smolact.training.cache import build_cache
from smolact.training.checkpoint import Progress, read_progress
from smolact.training.config import TrainConfig
from smolact.training.devices import make_accelerator
from smolact.training.faults import check_faults
from smolact.training.initialization import PolicyBundle, policy_config_of, start_new, start_resumed
from smolact.training.preflight import check_memory, check_sources
from smolact.training.random_state import seed_everything
from smolact.training.sources import Source, find_sources, shared_features, training_statistics
from smolact.training.tracking import Listener, Prepared

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunInputs:
    """The datasets and the policy of a run."""

    start: PolicyBundle
    progress: Progress
    sources: list[Source]
    datasets: list[LeRobotDataset]
    """The training data of each source."""
    held_out: dict[int, LeRobotDataset]
    """The held-out data of each source that has some, by the source's index."""

    @property
    def all_datasets(self) -> list[list[LeRobotDataset]]:
        """All data that is read from each source."""
        return [
            [dataset, *([self.held_out[index]] if index in self.held_out else [])]
            for index, dataset in enumerate(self.datasets)
        ]


def prepare_run(
    config: TrainConfig, accelerator: Accelerator, checkpoint: Path | None = None, *, trains: bool = True
) -> RunInputs:
    """Find the datasets, make a new policy or load that of a `checkpoint`, and check that they fit each other.

    If the policy `trains` now, a training step must also fit into the memory.

    Raises:
        SmolactError: settings, dataset, weights or checkpoint are invalid.
    """
    device = accelerator.device.type  # "cuda" is this process's GPU; its index is not saved
    sources = find_sources(config.dataset, config.rename_map)
    statistics = training_statistics(sources, imagenet=config.dataset.use_imagenet_stats)
    if checkpoint is None:
        policy_config, origin = policy_config_of(config, *shared_features(sources))
        check_sources(policy_config, sources, statistics)
        datasets = [source.open(policy_config) for source in sources]
        start, progress = start_new(policy_config, origin, statistics, config, device), Progress(0, 0)
    else:
        overrides = {
            name: value
            for name, value in config.policy.settings.items()
            if name != "device" and f"policy.{name}" in config.changed
        }
        start, progress = start_resumed(checkpoint, overrides, device), read_progress(checkpoint)
        check_sources(start.policy.config, sources, statistics)
        datasets = [source.open(start.policy.config) for source in sources]
    held_out = {
        index: source.open(start.policy.config, held_out=True)
        for index, source in enumerate(sources)
        if config.dataset.eval_split and source.held_out
    }
    # The files are local now, so the sizes of the videos are known.
    sources = [replace(source, meta=dataset.meta) for source, dataset in zip(sources, datasets, strict=True)]
    for source in sources if accelerator.is_main_process else ():
        check_faults(start.policy.config, source, config.dataset)
    robot = embodiment_of([(source.meta, source.rename_map) for source in sources])
    note_other_robot(start.policy.config, robot)
    start.policy.config.of_robot(robot)
    if trains:
        check_memory(start.policy, config, accelerator)
    return RunInputs(start, progress, sources, datasets, held_out)


def with_saved_names(config: TrainConfig) -> TrainConfig:
    """Return the settings with the rename map of the start checkpoint, unless they have a map.

    Only entries that match the datasets are used; the policy's own names in a dataset take precedence.

    Raises:
        SmolactError: the checkpoint or a dataset is missing or corrupt.
    """
    if config.rename_map or config.policy.path is None:
        return config
    saved = rename_map_in(find_policy(config.policy.path, patterns=["*.json"]))
    if not saved:
        return config
    available = {key for source in find_sources(config.dataset, {}) for key in source.meta.features}
    names = usable_names(saved, available)
    if not names:
        return config
    logger.info(
        "Names are mapped as in the training of %s: %s.",
        config.policy.path,
        ", ".join(f"{old} → {new}" for old, new in names.items()),
    )
    return replace(config, rename_map=names)


def encode(config: TrainConfig, *, listeners: Sequence[Listener] = ()) -> str:
    """Create the cache of `--cache.features` or `--dataset.cache`, for training with the same settings.

    An interrupted call leaves the finished part.

    Raises:
        SmolactError: as training before its first step; `ConfigError` also if no cache is configured.
    """
    config.check_complete()
    if not (config.cache.features or config.dataset.cache):
        raise ConfigError("What is to be kept? Give --cache.features=true or --dataset.cache=frames.")
    config = with_saved_names(config)
    accelerator = make_accelerator(config)
    seed_everything(agreed_seed(config, accelerator))  # the same random weights as in training
    inputs = prepare_run(config, accelerator, trains=False)
    description = build_cache(
        config,
        inputs.start.policy,
        inputs.sources,
        inputs.all_datasets,
        accelerator,
        progress_callback(listeners, accelerator),
    )
    assert description is not None
    return description


def progress_callback(
    listeners: Sequence[Listener], accelerator: Accelerator
) -> Callable[[str, int, int], None]:
    """Return a callback that sends progress to the listeners, from the main process."""

    def report(what: str, done: int, of: int) -> None:
        if accelerator.is_main_process:
            for listener in listeners:
                listener(Prepared(what, done, of))

    return report


def agreed_seed(config: TrainConfig, accelerator: Accelerator) -> int:
    """Return `--seed`, or a random one that all processes share."""
    if config.seed is not None:
        return config.seed
    drawn = secrets.randbelow(2**31) if accelerator.is_main_process else 0
    return int(accelerator.reduce(torch.tensor(drawn, device=accelerator.device), reduction="sum"))

"""The dataset of a run, and the order of its samples: an endless stream that depends on the seed alone.

So a run can go on in the middle, and is the run that it would have been.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler

from smolact.datasets.collate import collate
from smolact.datasets.metadata import LeRobotDatasetMetadata
from smolact.datasets.reader import LeRobotDataset
from smolact.errors import ConfigError, SmolactError, TrainingError
from smolact.hub import find_folder
from smolact.policies.configuration import PolicyConfig
from smolact.training.config import DatasetSection, TrainConfig
from smolact.types import ACTION, Batch


def read_metadata(section: DatasetSection) -> LeRobotDatasetMetadata:
    """What is known of the dataset that the flags name, without its frames."""
    folder = find_folder(
        section.name, "dataset", root=section.root, patterns=["meta/**"], revision=section.revision
    )
    return LeRobotDatasetMetadata(folder)


def open_dataset(section: DatasetSection, policy: PolicyConfig, fps: float) -> LeRobotDataset:
    """The dataset that the flags name, without the episodes that they leave out; samples hold the policy's chunks."""
    offsets = [index / fps for index in policy.action_delta_indices]  # type: ignore[attr-defined]
    open_it = partial(
        LeRobotDataset,
        section.name,
        root=section.root,
        delta_timestamps={ACTION: offsets},
        revision=section.revision,
        return_uint8=True,
    )
    if not section.exclude_episodes:
        return open_it(episodes=section.episodes)
    left_out = set(section.exclude_episodes)
    every = range(read_metadata(section).total_episodes)
    kept = [number for number in section.episodes or every if number not in left_out]
    if not kept:
        raise ConfigError("--dataset.exclude_episodes leaves no episode. Leave fewer out.")
    return open_it(episodes=kept)


def make_loader(
    dataset: LeRobotDataset, config: TrainConfig, *, seed: int, start: int, pin_memory: bool
) -> DataLoader[Batch]:
    """Batches without end, from sample `start` of the stream that `seed` gives."""
    workers: dict[str, Any] = {}
    if config.num_workers:
        context = config.dataloader_multiprocessing_context
        workers = {"prefetch_factor": config.prefetch_factor, "multiprocessing_context": context}
    return DataLoader(
        dataset,
        batch_size=config.batch_size,
        sampler=ShuffledStream(len(dataset), seed, start),
        num_workers=config.num_workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        generator=torch.Generator().manual_seed(seed),  # or it would draw from the policy's
        **workers,
    )


def next_batch(batches: Iterator[Batch]) -> Batch:
    """The next batch; what went wrong in a worker is told as if it had gone wrong here.

    Raises:
        SmolactError: what reading a sample raised, without the worker's traceback in its message.
        TrainingError: a worker died.
    """
    try:
        return next(batches)
    except SmolactError as error:
        _, marker, message = str(error).rpartition(f"{type(error).__module__}.{type(error).__qualname__}: ")
        if not marker:
            raise
        raise type(error)(message.strip()) from error
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise TrainingError(
            f"A process that loads data died: {error} If the machine ran out of memory, lower --num_workers or "
            "--prefetch_factor; --num_workers=0 shows what goes wrong."
        ) from error


class ShuffledStream(Sampler[int]):
    """Epoch after epoch, each in an order of its own, without end; batches run across the seams.

    Args:
        length: samples in the dataset.
        seed: decides every epoch's order.
        start: samples to skip: where a resumed run goes on.
    """

    def __init__(self, length: int, seed: int, start: int = 0) -> None:
        self.length, self.seed, self.start = length, seed, start

    def __iter__(self) -> Iterator[int]:
        epoch, offset = divmod(self.start, self.length)
        while True:
            order = torch.randperm(self.length, generator=self._generator(epoch))
            yield from order[offset:].tolist()
            epoch, offset = epoch + 1, 0

    def _generator(self, epoch: int) -> torch.Generator:
        # Seeds that differ in one bit give unrelated streams, seeds that are added up could meet.
        return torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % 2**63)

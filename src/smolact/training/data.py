"""The dataset of a run, and the order of its samples: an endless stream that depends on the seed alone.

The stream numbers its samples: position p of seed s is always the same frame with the same noise, time and augmentation,
whichever process, worker or batch it falls into. So a run can go on in the middle, or on other hardware, and is the run
that it would have been.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from smolact.datasets.collate import collate
from smolact.datasets.metadata import LeRobotDatasetMetadata
from smolact.datasets.reader import LeRobotDataset
from smolact.errors import ConfigError, SmolactError, TrainingError
from smolact.hub import find_folder
from smolact.policies.configuration import PolicyConfig
from smolact.training.config import DatasetSection, TrainConfig
from smolact.types import ACTION, Batch, is_image_key

logger = logging.getLogger(__name__)

Draws = Callable[[torch.Generator], dict[str, Tensor]]
Augmentation = Callable[[Tensor, torch.Generator], Tensor]

DRAWN = "drawn."
"""What a sample's own generator drew for the policy's `forward` is in the batch under this prefix."""


def read_metadata(section: DatasetSection) -> LeRobotDatasetMetadata:
    """What is known of the dataset that the flags name, without its frames."""
    folder = find_folder(
        section.name, "dataset", root=section.root, patterns=["meta/**"], revision=section.revision
    )
    return LeRobotDatasetMetadata(folder)


def open_dataset(
    section: DatasetSection, policy: PolicyConfig, fps: float, episodes: Sequence[int] | None
) -> LeRobotDataset:
    """These episodes of the dataset that the flags name (all when None); samples hold the policy's chunks."""
    offsets = [index / fps for index in policy.action_delta_indices]  # type: ignore[attr-defined]
    return LeRobotDataset(
        section.name,
        root=section.root,
        episodes=episodes,
        delta_timestamps={ACTION: offsets},
        revision=section.revision,
        return_uint8=True,
    )


def chosen_episodes(section: DatasetSection, meta: LeRobotDatasetMetadata) -> list[int]:
    """The episodes that the flags choose.

    Raises:
        ConfigError: they leave none, or name one that is not there.
    """
    every = range(meta.total_episodes) if section.episodes is None else section.episodes
    if any(number >= meta.total_episodes for number in every):
        raise ConfigError(
            f"--dataset.episodes names {max(every)}: the dataset has the episodes 0 to {meta.total_episodes - 1}."
        )
    left_out = set(section.exclude_episodes or ())
    if left_out and max(left_out) >= meta.total_episodes:
        raise ConfigError(
            f"--dataset.exclude_episodes names {max(left_out)}: the dataset has the episodes 0 to {meta.total_episodes - 1}."
        )
    kept = sorted(number for number in every if number not in left_out)
    if left_out and not kept:
        raise ConfigError("--dataset.exclude_episodes leaves no episode. Leave fewer out.")
    return kept


class Place(NamedTuple):
    """A sample of the stream: its position, and the frame of the dataset that is there."""

    position: int
    frame: int


class ShuffledStream(Sampler[Place]):
    """Epoch after epoch, each in an order of its own, without end; batches run across the seams.

    Several processes share one stream: of every `batch_size` × `processes` places in a row, process `rank` takes its
    `batch_size`.

    Args:
        length: samples in the dataset.
        seed: decides every epoch's order.
        start: places to skip: where a resumed run goes on.
        batch_size, rank, processes: whose part of the stream this is.
    """

    def __init__(
        self,
        length: int,
        seed: int,
        start: int = 0,
        *,
        batch_size: int = 1,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        self.length, self.seed, self.start = length, seed, start
        self.batch_size, self.rank, self.processes = batch_size, rank, processes
        self._epoch, self._order = -1, torch.empty(0)

    def __iter__(self) -> Iterator[Place]:
        first = self.start + self.rank * self.batch_size
        while True:
            yield from map(self.place, range(first, first + self.batch_size))
            first += self.batch_size * self.processes

    def place(self, position: int) -> Place:
        """The place at a position of the stream."""
        epoch, offset = divmod(position, self.length)
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = torch.randperm(self.length, generator=seeded(self.seed, "epoch", epoch))
        return Place(position, int(self._order[offset]))


class Samples(Dataset[Batch]):
    """The stream's samples: frames of a dataset, augmented, with what the policy needs drawn; all by the place's seed.

    Args:
        dataset: images come as uint8.
        seed: the stream's.
        draws: the policy's `training_draws`.
        augment: called with each image (3, H, W) and the sample's generator.
    """

    def __init__(
        self,
        dataset: LeRobotDataset,
        seed: int,
        draws: Draws | None = None,
        augment: Augmentation | None = None,
    ) -> None:
        self.dataset, self.seed, self.draws, self.augment = dataset, seed, draws, augment

    def __getitem__(self, place: Place) -> Batch:
        return self.__getitems__([place])[0]

    def __getitems__(self, places: Sequence[Place]) -> list[Batch]:
        """Several samples at once, as a DataLoader asks for them."""
        samples = self.dataset.__getitems__([place.frame for place in places])
        return [self._finish(sample, place.position) for sample, place in zip(samples, places, strict=True)]

    def _finish(self, sample: Batch, position: int) -> Batch:
        finished = dict(sample)
        if self.augment is not None:
            generator = seeded(self.seed, "augmentation", position)
            for key in filter(is_image_key, sample):
                finished[key] = self.augment(sample[key], generator)
        if self.draws is not None:
            drawn = self.draws(seeded(self.seed, "draws", position))
            finished |= {DRAWN + name: value for name, value in drawn.items()}
        return finished


@dataclass(frozen=True)
class SeveralDraws:
    """Calls `draws` `number` times and stacks what each name got: a tensor (…) becomes (number, …).

    Raises:
        ConfigError: the number is below 1.
    """

    draws: Draws
    number: int

    def __post_init__(self) -> None:
        if self.number < 1:
            raise ConfigError(f"--noise_draws={self.number} is too small: it must be 1 or more.")

    def __call__(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw them, one after the other."""
        drawn = [self.draws(generator) for _ in range(self.number)]
        return {name: torch.stack([one[name] for one in drawn]) for name in drawn[0]}


def take_drawn(batch: Batch) -> tuple[Batch, dict[str, Tensor]]:
    """A batch without what was drawn for its samples, and that."""
    drawn = {key.removeprefix(DRAWN): value for key, value in batch.items() if key.startswith(DRAWN)}
    return {key: value for key, value in batch.items() if not key.startswith(DRAWN)}, drawn


def seeded(seed: int, purpose: str, number: int) -> torch.Generator:
    """A generator for one thing of a run. Seeds that are near, or added up, give unrelated ones."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{number}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def make_loader(
    samples: Samples, config: TrainConfig, *, start: int, pin_memory: bool, rank: int = 0, processes: int = 1
) -> DataLoader[Batch]:
    """Batches without end, from place `start` of the stream."""
    workers: dict[str, Any] = {}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = min(config.num_workers, cores)
    if count < config.num_workers:
        logger.info(
            "Data is loaded by %d processes, not %d: this machine has no more cores.",
            count,
            config.num_workers,
        )
    if count:
        context = config.dataloader_multiprocessing_context
        workers = {"prefetch_factor": config.prefetch_factor, "multiprocessing_context": context}
    stream = ShuffledStream(
        len(samples.dataset),
        samples.seed,
        start,
        batch_size=config.batch_size,
        rank=rank,
        processes=processes,
    )
    return DataLoader(
        samples,
        batch_size=config.batch_size,
        sampler=stream,
        num_workers=count,
        collate_fn=collate,
        pin_memory=pin_memory,
        generator=torch.Generator().manual_seed(samples.seed),  # or it would draw from the policy's
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

"""The samples of a run in batches: position p of seed s always has the same frame, noise and augmentation."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from smolact.datasets.collate import collate
from smolact.datasets.reader import LeRobotDataset
from smolact.datasets.transforms import ImageTransforms
from smolact.datasets.unreadable import Unreadable
from smolact.errors import DatasetError, SmolactError, TrainingError
from smolact.machine import cores, exit_without_finalizing
from smolact.policies.base import PreTrainedPolicy
from smolact.training.config import TrainConfig
from smolact.training.sources import MixedDataset, Source, open_sources, order_of
from smolact.training.stream import IndexOrder, InfiniteSampler, SampleIndex, ShuffledEpochs, seeded
from smolact.types import Batch, is_image_key

logger = logging.getLogger(__name__)

T = TypeVar("T")
Draws = Callable[[torch.Generator], dict[str, Tensor]]
Augmentation = Callable[[Tensor, torch.Generator], Tensor]

SUBSTITUTES = 16
"""Frames that are tried in place of an unreadable one, before the dataset counts as unreadable."""
UNREADABLE = "unreadable"
"""Key of the unreadable frames of a sample or a batch, a list of `Unreadable`."""
NOISE_PREFIX = "drawn."
"""Prefix of batch keys for values that a sample's generator draws for the policy's `forward`."""


class TrainDataset(Dataset[Batch]):
    """The stream's samples: augmented frames with the policy's random draws, all seeded by the position.

    Args:
        draws: the policy's `training_draws`.
        augment: called with each image (3, H, W) and the sample's generator.
        order: the order of the frames; all of them, epoch after epoch, when None.
        tolerant: replace an unreadable frame (`IndexOrder.substitute`), and list it under `UNREADABLE`.
    """

    def __init__(
        self,
        dataset: LeRobotDataset | MixedDataset,
        seed: int,
        draws: Draws | None = None,
        augment: Augmentation | None = None,
        order: IndexOrder | None = None,
        *,
        tolerant: bool = False,
    ) -> None:
        self.tolerant = tolerant
        self.dataset, self.seed, self.draws, self.augment = dataset, seed, draws, augment
        self.order = order or ShuffledEpochs(range(len(dataset)), seed)

    def __getitem__(self, index: SampleIndex) -> Batch:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[SampleIndex]) -> list[Batch]:
        """Return several samples, for a DataLoader.

        Raises:
            DatasetError: a frame is unreadable; if `tolerant`, all of its substitutes, too.
        """
        try:
            samples = self.dataset.__getitems__([index.frame for index in indices])
        except DatasetError:
            if not self.tolerant:
                raise
            return [self._read_or_substitute(index) for index in indices]
        return [self._finish(sample, index.position) for sample, index in zip(samples, indices, strict=True)]

    def _read_or_substitute(self, index: SampleIndex) -> Batch:
        """Return the sample at an index, or that of a substitute frame."""
        frame, unreadable = index.frame, list[Unreadable]()
        for attempt in range(SUBSTITUTES + 1):
            try:
                (sample,) = self.dataset.__getitems__([frame])
            except DatasetError as error:
                if attempt == SUBSTITUTES:
                    raise
                unreadable.append(self.dataset.unreadable(frame, error))
                frame = self.order.substitute(index.position, attempt)
            else:
                break
        return self._finish(sample, index.position) | ({UNREADABLE: unreadable} if unreadable else {})

    def _finish(self, sample: Batch, position: int) -> Batch:
        finished = dict(sample)
        if self.augment is not None:
            generator = seeded(self.seed, "augmentation", position)
            for key in filter(is_image_key, sample):
                finished[key] = self.augment(sample[key], generator)
        if self.draws is not None:
            drawn = self.draws(seeded(self.seed, "draws", position))
            finished |= {NOISE_PREFIX + name: value for name, value in drawn.items()}
        return finished


def training_samples(
    config: TrainConfig,
    seed: int,
    policy: PreTrainedPolicy,
    sources: Sequence[Source],
    datasets: Sequence[LeRobotDataset],
) -> TrainDataset:
    """Return the samples that a run trains on: of each source its dataset, augmented, in the order of the seed."""
    transforms = config.dataset.image_transforms
    drop_last = config.dataset.drop_n_last_frames
    if drop_last is None:
        drop_last = policy.config.drop_n_last_frames
    draws = policy.training_draws
    if draws is not None and config.noise_draws != 1:
        draws = RepeatedNoise(draws, config.noise_draws)
    return TrainDataset(
        open_sources(sources, datasets),
        seed,
        draws,
        ImageTransforms(transforms) if transforms.enable else None,
        order_of(sources, datasets, seed, drop_last),
        tolerant=True,
    )


def held_out_samples(
    seed: int, policy: PreTrainedPolicy, sources: Sequence[Source], held_out: Mapping[int, LeRobotDataset]
) -> TrainDataset:
    """Return the samples of the held-out loss: of each source, by its index, its held-out dataset."""
    datasets = open_sources([sources[index] for index in held_out], list(held_out.values()))
    return TrainDataset(datasets, seed, policy.training_draws, tolerant=True)


def batch_of(samples: Sequence[Batch]) -> Batch:
    """Collate samples to a batch, which has `UNREADABLE` if one of them has it."""
    unreadable = [frame for sample in samples for frame in sample.get(UNREADABLE, ())]
    if not unreadable:
        return collate(samples)
    readable = [{key: value for key, value in sample.items() if key != UNREADABLE} for sample in samples]
    return collate(readable) | {UNREADABLE: unreadable}


@dataclass(frozen=True)
class RepeatedNoise:
    """Calls `draws` `number` times and stacks the values of each name: a tensor (…) becomes (number, …)."""

    draws: Draws
    number: int

    def __call__(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw the values, one after the other."""
        drawn = [self.draws(generator) for _ in range(self.number)]
        return {name: torch.stack([values[name] for values in drawn]) for name in drawn[0]}


def split_noise(batch: Batch) -> tuple[Batch, dict[str, Tensor]]:
    """Return the batch without the values drawn for its samples, and these values."""
    drawn = {
        key.removeprefix(NOISE_PREFIX): value for key, value in batch.items() if key.startswith(NOISE_PREFIX)
    }
    return {key: value for key, value in batch.items() if not key.startswith(NOISE_PREFIX)}, drawn


def make_loader(
    samples: TrainDataset,
    config: TrainConfig,
    *,
    start: int,
    pin_memory: bool,
    rank: int = 0,
    processes: int = 1,
) -> Iterable[Batch]:
    """Return endless batches from stream position `start`."""
    workers = _worker_settings(config)
    # A custom dataset lacks `decodes`, and may be slow.
    is_light = not getattr(samples.dataset, "decodes", True) and samples.augment is None
    if is_light and workers["num_workers"]:
        logger.info(
            "Nothing is decoded: a thread loads the data, since processes would take longer to hand it over."
        )
    elif workers["num_workers"] < config.num_workers:
        logger.info(
            "Data is loaded by %d processes, not %d: this machine has no more cores.",
            workers["num_workers"],
            config.num_workers,
        )
    stream = InfiniteSampler(
        samples.order, start, batch_size=config.batch_size, rank=rank, processes=processes
    )
    loader = DataLoader(
        samples,
        batch_size=config.batch_size,
        sampler=stream,
        collate_fn=batch_of,
        pin_memory=pin_memory,
        generator=torch.Generator().manual_seed(samples.seed),  # otherwise it would draw from the global one
        **({} if is_light else workers),
    )
    return prefetch(loader, config.prefetch_factor) if is_light and workers["num_workers"] else loader


def prefetch(items: Iterable[T], number: int) -> Iterator[T]:
    """Yield the items, of which a thread makes up to `number` in advance; its error is raised at the item's position."""
    iterator, end = iter(items), object()
    thread = ThreadPoolExecutor(1, thread_name_prefix="smolact data")
    ready: deque[Future[Any]] = deque(thread.submit(next, iterator, end) for _ in range(number))
    try:
        while (item := ready.popleft().result()) is not end:
            ready.append(thread.submit(next, iterator, end))
            yield item
    finally:
        thread.shutdown(cancel_futures=True)


def _worker_settings(config: TrainConfig) -> dict[str, Any]:
    """Return the DataLoader's settings for workers: `--num_workers`, but at most one per core."""
    count = min(config.num_workers, cores())
    more = {
        "prefetch_factor": config.prefetch_factor,
        "multiprocessing_context": config.dataloader_multiprocessing_context,
        "timeout": config.dataloader_timeout,
        "worker_init_fn": exit_without_finalizing,
    }
    return {"num_workers": count, **(more if count else {})}


def _identity(item: T) -> T:
    return item


def map_with_workers(items: Dataset[T], config: TrainConfig) -> Iterator[T]:
    """Yield the items of a dataset, in order, read by the run's workers; errors are those of `next_batch`."""
    if not len(items):  # type: ignore[arg-type]
        return
    loader = iter(DataLoader(items, batch_size=None, collate_fn=_identity, **_worker_settings(config)))
    for _ in range(len(items)):  # type: ignore[arg-type]
        yield next_batch(loader)


def next_batch(batches: Iterator[T]) -> T:
    """Return the next batch; raise a worker's error as if it had occurred in this process.

    Raises:
        SmolactError: reading a sample failed; the message does not contain the worker's traceback.
        TrainingError: a worker died, or none produced a batch in time.
    """
    try:
        return next(batches)
    except SmolactError as error:
        _, marker, message = str(error).rpartition(f"{type(error).__module__}.{type(error).__qualname__}: ")
        if not marker:
            raise
        raise type(error)(message.strip()) from error
    except RuntimeError as error:
        if "DataLoader timed out" in str(error):
            raise TrainingError(
                f"No batch came from the processes that load data: {error}. Either one hangs (--num_workers=0 shows where), "
                "or the disk or the machine is that slow: raise --dataloader_timeout (seconds), or lower --num_workers."
            ) from error
        if "DataLoader worker" not in str(error):
            raise
        raise TrainingError(
            f"A process that loads data died: {error} If the machine ran out of memory, lower --num_workers or "
            "--prefetch_factor; --num_workers=0 shows what goes wrong."
        ) from error

"""The samples of a run as batches: position p of seed s is always the same frame with the same noise and augmentation."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from smolact.datasets.collate import collate
from smolact.datasets.reader import LeRobotDataset
from smolact.datasets.unreadable import Unreadable
from smolact.errors import DatasetError, SmolactError, TrainingError
from smolact.training.config import TrainConfig
from smolact.training.sources import MixedDataset
from smolact.training.stream import IndexOrder, InfiniteSampler, SampleIndex, ShuffledEpochs, seeded
from smolact.types import Batch, is_image_key

logger = logging.getLogger(__name__)

T = TypeVar("T")
Draws = Callable[[torch.Generator], dict[str, Tensor]]
Augmentation = Callable[[Tensor, torch.Generator], Tensor]

SUBSTITUTES = 16
"""Frames that are tried in the place of one that can't be read; if none of them can be read either, the dataset is gone."""
UNREADABLE = "unreadable"
"""What could not be read of a sample, or of a batch, as a list of `Unreadable`."""
NOISE_PREFIX = "drawn."
"""What a sample's own generator drew for the policy's `forward` is in the batch under this prefix."""


class TrainDataset(Dataset[Batch]):
    """The stream's samples: frames of a dataset, augmented, with what the policy needs drawn; all by the place's seed.

    Args:
        dataset: images come as uint8.
        seed: the stream's.
        draws: the policy's `training_draws`.
        augment: called with each image (3, H, W) and the sample's generator.
        order: of the frames; all of them, epoch after epoch, when None.
        tolerant: where a frame can't be read, another takes its place (`IndexOrder.substitute`) and the sample lists what could not be
            read under `UNREADABLE`.
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

    def __getitem__(self, place: SampleIndex) -> Batch:
        return self.__getitems__([place])[0]

    def __getitems__(self, places: Sequence[SampleIndex]) -> list[Batch]:
        """Several samples at once, as a DataLoader asks for them.

        Raises:
            DatasetError: a frame can't be read; if `tolerant`, neither can any that might take its place.
        """
        try:
            samples = self.dataset.__getitems__([place.frame for place in places])
        except DatasetError:
            if not self.tolerant:
                raise
            return [self._readable(place) for place in places]
        return [self._finish(sample, place.position) for sample, place in zip(samples, places, strict=True)]

    def _readable(self, place: SampleIndex) -> Batch:
        """The sample at a place, or that of another frame in its place."""
        frame, unreadable = place.frame, list[Unreadable]()
        for attempt in range(SUBSTITUTES + 1):
            try:
                (sample,) = self.dataset.__getitems__([frame])
            except DatasetError as error:
                if attempt == SUBSTITUTES:
                    raise
                unreadable.append(self.dataset.unreadable(frame, error))
                frame = self.order.substitute(place.position, attempt)
            else:
                break
        return self._finish(sample, place.position) | ({UNREADABLE: unreadable} if unreadable else {})

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


def batch_of(samples: Sequence[Batch]) -> Batch:
    """Samples to a batch; `UNREADABLE` is in it where one of them has it."""
    unreadable = [one for sample in samples for one in sample.get(UNREADABLE, ())]
    if not unreadable:
        return collate(samples)
    bare = [{key: value for key, value in sample.items() if key != UNREADABLE} for sample in samples]
    return collate(bare) | {UNREADABLE: unreadable}


@dataclass(frozen=True)
class RepeatedNoise:
    """Calls `draws` `number` times and stacks what each name got: a tensor (…) becomes (number, …)."""

    draws: Draws
    number: int

    def __call__(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw them, one after the other."""
        drawn = [self.draws(generator) for _ in range(self.number)]
        return {name: torch.stack([one[name] for one in drawn]) for name in drawn[0]}


def split_noise(batch: Batch) -> tuple[Batch, dict[str, Tensor]]:
    """A batch without what was drawn for its samples, and that."""
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
    """Batches without end, from place `start` of the stream."""
    workers = _workers(config)
    # A dataset of somebody else's says nothing, and may take its time.
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
        generator=torch.Generator().manual_seed(samples.seed),  # or it would draw from the policy's
        **({} if is_light else workers),
    )
    return prefetch(loader, config.prefetch_factor) if is_light and workers["num_workers"] else loader


def prefetch(items: Iterable[T], number: int) -> Iterator[T]:
    """What `items` gives, made by a thread, up to `number` of them before they are asked for.

    Raises:
        BaseException: what making one raised, where it would have come.
    """
    ready: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(number)
    is_over = threading.Event()

    def put(item: T | None, error: BaseException | None) -> None:
        while not is_over.is_set():
            with contextlib.suppress(queue.Full):
                ready.put((item, error), timeout=0.1)
                return

    def make() -> None:
        try:
            for item in items:
                put(item, None)
                if is_over.is_set():
                    return
            put(None, StopIteration())
        except BaseException as error:
            put(None, error)

    thread = threading.Thread(target=make, name="smolact data", daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item  # type: ignore[misc]
    finally:
        is_over.set()
        thread.join()


def _workers(config: TrainConfig) -> dict[str, Any]:
    """How a loader's processes are set: `--num_workers`, but no more than there are cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = min(config.num_workers, cores)
    more = {
        "prefetch_factor": config.prefetch_factor,
        "multiprocessing_context": config.dataloader_multiprocessing_context,
        "timeout": config.dataloader_timeout,
    }
    return {"num_workers": count, **(more if count else {})}


def _as_it_is(item: T) -> T:
    return item


def map_with_workers(items: Dataset[T], config: TrainConfig) -> Iterator[T]:
    """Each item of a dataset, in order, read by as many processes as a run has.

    Raises:
        SmolactError: see `next_batch`.
    """
    if not len(items):  # type: ignore[arg-type]
        return
    loader = iter(DataLoader(items, batch_size=None, collate_fn=_as_it_is, **_workers(config)))
    for _ in range(len(items)):  # type: ignore[arg-type]
        yield next_batch(loader)


def next_batch(batches: Iterator[T]) -> T:
    """The next batch; what went wrong in a worker is told as if it had gone wrong here.

    Raises:
        SmolactError: what reading a sample raised, without the worker's traceback in its message.
        TrainingError: a worker died, or none gave a batch in time.
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

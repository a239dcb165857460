"""A batch cut into pieces, and the gradients of one piece: what processes that share a step compute.

Each piece is computed by one thread, and their gradients are added up in the order of the pieces. So it makes no difference who computes
which: as long as the number of pieces is the same, the number of processes may change at any step, and the run stays the same, bit for bit.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from smolact.datasets.unreadable import Unreadable
from smolact.policies.base import PreTrainedPolicy
from smolact.processors.pipeline import ProcessorPipeline
from smolact.training.data import UNREADABLE, TrainDataset, batch_of, split_noise
from smolact.training.stream import InfiniteSampler, seeded
from smolact.types import Batch

MIN_PART_SAMPLES = 4
"""Samples. Smaller pieces cost more for each sample."""
MIN_PARTS = 4


def default_part_count(count: int, processes: int) -> int:
    """How many pieces a step of `count` samples has that so many processes may work at.

    Two for each of them, so that a slow one need not hold up the others, unless they would be too small.
    """
    return max(1, min(max(MIN_PARTS, 2 * processes), max_part_count(count)))


def max_part_count(count: int) -> int:
    """How many pieces a step of `count` samples can have."""
    return max(1, count // MIN_PART_SAMPLES)


def split_evenly(count: int, number: int) -> list[range]:
    """The places of a step, from 0, in so many pieces, which differ by a sample at most."""
    edges = [round(count * place / number) for place in range(number + 1)]
    return [range(first, last) for first, last in itertools.pairwise(edges)]


@dataclass(frozen=True)
class GradientPart:
    """What came of a piece.

    Attributes:
        loss: summed.
        entries: how many numbers it is the sum over.
        has_gradient: of each trained parameter, whether the loss reached it.
        unreadable: frames that could not be read.
        waited: seconds that reading took.
        seconds: that all of it took, and `busy` of them by the processor.
    """

    loss: float
    entries: float
    has_gradient: tuple[bool, ...]
    unreadable: list[Unreadable] = field(default_factory=list)
    waited: float = 0.0
    seconds: float = 0.0
    busy: float = 0.0


@dataclass
class GradientWorker:
    """What a process needs to compute gradients: it can be sent to another process."""

    policy: PreTrainedPolicy
    preprocess: ProcessorPipeline
    samples: TrainDataset
    seed: int
    at_once: int
    """A larger piece is computed in parts of so many samples: `--batch_size`."""
    in_bfloat16: bool = False

    @property
    def trained(self) -> list[nn.Parameter]:
        """The parameters that have gradients."""
        return [parameter for parameter in self.policy.parameters() if parameter.requires_grad]

    def gradients(self, places: Sequence[int], into: Tensor) -> GradientPart:
        """Compute the gradients of the summed loss of the samples at these places of the stream.

        Args:
            places: positions.
            into: takes the gradients of all trained parameters, one after the other (N,).
        """
        began, worked = time.perf_counter(), time.thread_time()
        loss = entries = waited = 0.0
        unreadable: list[Unreadable] = []
        # What a network draws itself, as dropout does, follows from the place too, not from who computes it.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeded(self.seed, "piece", places[0]).initial_seed())
            for first in range(0, len(places), self.at_once):
                waiting = time.perf_counter()
                batch, drawn = split_noise(self._read(places[first : first + self.at_once]))
                unreadable += batch.pop(UNREADABLE, ())
                waited += time.perf_counter() - waiting
                with torch.autocast("cpu", torch.bfloat16, enabled=self.in_bfloat16):
                    part, counted = self.policy(self.preprocess(batch), **drawn, reduction="sum")
                part.backward()
                loss, entries = loss + float(part.detach()), entries + float(counted["entries"])
        trained = self.trained
        has_gradient = tuple(parameter.grad is not None for parameter in trained)
        for parameter, part in zip(trained, split(into, trained), strict=True):
            if parameter.grad is not None:
                part.copy_(parameter.grad)
                parameter.grad = None
        return GradientPart(
            loss,
            entries,
            has_gradient,
            unreadable,
            waited,
            time.perf_counter() - began,
            time.thread_time() - worked,
        )

    def _read(self, places: Sequence[int]) -> Batch:
        stream = InfiniteSampler(self.samples.order)
        return batch_of(self.samples.__getitems__([stream.place(place) for place in places]))


def split(flat: Tensor, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """Views of `flat` (N,), one for each parameter in its shape."""
    parts = torch.split(flat, [parameter.numel() for parameter in parameters])
    return [part.view_as(parameter) for part, parameter in zip(parts, parameters, strict=True)]

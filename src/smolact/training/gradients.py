"""A batch split into pieces, and the gradients of one piece, for processes that share a step.

One thread computes a piece, and the gradients are summed in the order of the pieces. So with the same number of pieces, the
number of processes may change at any step, and the run stays the same, bit for bit.
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
from smolact.training.stream import samples_at, seeded
from smolact.types import Batch

MIN_PART_SAMPLES = 4
"""Minimum number of samples in a piece; smaller pieces cost more per sample."""
MIN_PARTS = 4


def default_part_count(count: int, processes: int) -> int:
    """Return the number of pieces of a step of `count` samples for this number of processes.

    Two per process, so that a slow one need not delay the others, unless they would be too small.
    """
    return max(1, min(max(MIN_PARTS, 2 * processes), max_part_count(count)))


def max_part_count(count: int) -> int:
    """Return the maximum number of pieces of a step of `count` samples."""
    return max(1, count // MIN_PART_SAMPLES)


def split_evenly(count: int, number: int) -> list[range]:
    """Return the positions of a step, from 0, in `number` pieces, whose sizes differ by one at most."""
    edges = [round(count * index / number) for index in range(number + 1)]
    return [range(first, last) for first, last in itertools.pairwise(edges)]


@dataclass(frozen=True)
class GradientPart:
    """The result of a piece.

    Attributes:
        loss: the summed loss.
        entries: number of entries in the sum.
        has_gradient: of each trained parameter, whether the loss reached it.
        unreadable: frames that could not be read.
        waited: seconds spent on reading.
        seconds: total duration, of which `busy` seconds of CPU time.
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
    """Computes gradients in a process; it can be sent to another process."""

    policy: PreTrainedPolicy
    preprocess: ProcessorPipeline
    samples: TrainDataset
    seed: int
    micro_batch_size: int
    """Samples of a forward pass (`--batch_size`); a larger piece has several."""
    in_bfloat16: bool = False

    @property
    def trained(self) -> list[nn.Parameter]:
        """The parameters that train."""
        return [parameter for parameter in self.policy.parameters() if parameter.requires_grad]

    def gradients(self, positions: Sequence[int], into: Tensor) -> GradientPart:
        """Compute the gradients of the summed loss of the samples at these positions of the stream.

        Args:
            into: receives the gradients of all trained parameters, concatenated (N,).
        """
        began, worked = time.perf_counter(), time.thread_time()
        loss = entries = waited = 0.0
        unreadable: list[Unreadable] = []
        # The network's own random numbers (dropout) depend on the position too, not on the process.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeded(self.seed, "piece", positions[0]).initial_seed())
            for first in range(0, len(positions), self.micro_batch_size):
                waiting = time.perf_counter()
                batch, drawn = split_noise(self._read(positions[first : first + self.micro_batch_size]))
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

    def _read(self, positions: Sequence[int]) -> Batch:
        return batch_of(self.samples.__getitems__(samples_at(self.samples.order, positions)))


def split(flat: Tensor, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """Return views of `flat` (N,), one for each parameter in its shape."""
    parts = torch.split(flat, [parameter.numel() for parameter in parameters])
    return [part.view_as(parameter) for part, parameter in zip(parts, parameters, strict=True)]

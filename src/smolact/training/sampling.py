"""The order of samples: an endless stream that depends on the seed alone, so that a run can go on in the middle."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler


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

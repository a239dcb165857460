"""The order of a run's samples: an endless stream that depends on the seed alone.

The stream numbers its samples: position p of seed s is always the same frame, whichever process, worker or batch it falls
into. So a run that resumes, also on other hardware, has the same samples as without the interruption.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Sampler

from smolact.errors import ConfigError

Ints = NDArray[np.int64]

BLOCK = 1024
"""Positions of a mixture after which each dataset has had its share."""


class IndexOrder(Protocol):
    """The frame at each position of a stream."""

    def frame(self, position: int) -> int:
        """The number of a frame; positions count from 0 without end."""
        ...

    def substitute(self, position: int, attempt: int) -> int:
        """The number of another frame, for a position whose own can't be read; attempts count from 0."""
        ...


class ShuffledEpochs:
    """Every frame once per epoch, each epoch in an order of its own.

    Args:
        frames: their numbers; a range where all of a dataset are used.
        purpose: distinguishes orders with the same seed.
    """

    def __init__(self, frames: Sequence[int] | Ints, seed: int, purpose: str = "epoch") -> None:
        self.frames, self.seed, self.purpose = frames, seed, purpose
        self._epoch, self._order = -1, torch.empty(0)

    def frame(self, position: int) -> int:
        """The frame at a position."""
        epoch, offset = divmod(position, len(self.frames))
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = torch.randperm(len(self.frames), generator=seeded(self.seed, self.purpose, epoch))
        return int(self.frames[int(self._order[offset])])

    def substitute(self, position: int, attempt: int) -> int:
        """Any frame, drawn for this position and attempt."""
        generator = seeded(self.seed, f"{self.purpose}, substitute {attempt}", position)
        return int(self.frames[int(torch.randint(len(self.frames), (), generator=generator))])


class Mixture:
    """Several orders in one, each with its share of the positions, spread evenly: exact to one position in every `BLOCK`.

    Args:
        weights: their shares, in any unit.
        purpose: distinguishes mixtures with the same seed.

    Raises:
        ConfigError: a weight that is no positive number, or too small a share.
    """

    def __init__(
        self, orders: Sequence[IndexOrder], weights: Sequence[float], seed: int, purpose: str = "mixture"
    ) -> None:
        shares = np.asarray(weights, dtype=np.float64)
        if not np.isfinite(shares).all() or not (shares > 0).all():
            raise ConfigError(f"Weights of a mixture must be numbers above 0, found {list(weights)}.")
        shares = shares / shares.sum()
        if shares.min() * BLOCK < 2:
            raise ConfigError(
                f"A share of {shares.min():.2%} is too small for a mixture: give each dataset {2 / BLOCK:.1%} or more."
            )
        self.orders, self.shares, self.seed, self.purpose = orders, shares, seed, purpose
        self._ends = np.append(np.cumsum(shares)[:-1], 1.0)
        self._block = -1
        self._turns: Ints = np.empty(0, dtype=np.int64)
        self._numbers: Ints = self._turns

    def frame(self, position: int) -> int:
        """The frame at a position, as its order numbers it."""
        turn, number = self.turn(position)
        return self.orders[turn].frame(number)

    def substitute(self, position: int, attempt: int) -> int:
        """A frame of the order whose turn it is."""
        turn, number = self.turn(position)
        return self.orders[turn].substitute(number, attempt)

    def turn(self, position: int) -> tuple[int, int]:
        """The order at a position, by its index, and the number of its earlier turns."""
        block, slot = divmod(position, BLOCK)
        if block != self._block:
            before, after = self._counts(block), self._counts(block + 1)
            turns = np.repeat(np.arange(len(self.orders)), after - before)
            shuffled = torch.randperm(BLOCK, generator=seeded(self.seed, self.purpose, block)).numpy()
            self._block, self._turns = block, turns[shuffled]
            self._numbers = np.empty(BLOCK, dtype=np.int64)
            for index, count in enumerate(before):
                slots = np.flatnonzero(self._turns == index)
                self._numbers[slots] = count + np.arange(len(slots))
        return int(self._turns[slot]), int(self._numbers[slot])

    def _counts(self, block: int) -> Ints:
        """The number of positions of each order before a block."""
        ends: Ints = np.floor(block * BLOCK * self._ends).astype(np.int64)
        return np.diff(ends, prepend=0)


class SampleIndex(NamedTuple):
    """A sample of the stream: its position, and the frame of the dataset that is there."""

    position: int
    frame: int


def samples_at(order: IndexOrder, positions: Iterable[int]) -> list[SampleIndex]:
    """The samples at some positions of a stream."""
    return [SampleIndex(position, order.frame(position)) for position in positions]


class InfiniteSampler(Sampler[SampleIndex]):
    """The samples of an order, without end; a batch may span two epochs.

    Several processes share one stream: of every `batch_size` × `processes` consecutive positions, process `rank` takes its
    `batch_size`.

    Args:
        start: positions to skip, where a run resumes.
        batch_size, rank, processes: the part of the stream.
    """

    def __init__(
        self, order: IndexOrder, start: int = 0, *, batch_size: int = 1, rank: int = 0, processes: int = 1
    ) -> None:
        self.order, self.start = order, start
        self.batch_size, self.rank, self.processes = batch_size, rank, processes

    def __iter__(self) -> Iterator[SampleIndex]:
        first = self.start + self.rank * self.batch_size
        while True:
            yield from samples_at(self.order, range(first, first + self.batch_size))
            first += self.batch_size * self.processes


def seeded(seed: int, purpose: str, number: int) -> torch.Generator:
    """A generator for one purpose of a run. Seeds that are near, or added up, give unrelated ones."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{number}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)

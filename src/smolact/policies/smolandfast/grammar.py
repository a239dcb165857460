"""Which tokens may come next, so that what is written is a chunk of actions and nothing else.

A chunk is a fixed number of coefficients, and tokens spell them: a token may end several of them, or end in the middle of
one. So what has been written is known by two numbers: the state (in the middle of what), and how many coefficients are
still to come. The three tables of a `Grammar` say what each token does to them. They are tensors, and live where the
logits are: nothing waits for the host.
"""

# S states, of which 0 is between two coefficients; V tokens; N coefficients of a chunk.

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from smolact.errors import ConfigError


@dataclass(frozen=True)
class Grammar:
    """The automaton of a chunk.

    Attributes:
        following: (S, V) int64, the state after a token; −1 where the token can't come.
        ends: (S, V) int64, how many coefficients the token completes.
        reachable: (S, N + 1) bool, whether from a state with so many coefficients to come a whole chunk can be written.
    """

    following: Tensor
    ends: Tensor
    reachable: Tensor

    @classmethod
    def of(cls, following: Tensor, ends: Tensor, length: int) -> Grammar:
        """The grammar of `length` coefficients.

        Raises:
            ConfigError: the tokens can't spell a chunk of that length.
        """
        reachable = torch.zeros(len(following), length + 1, dtype=torch.bool)
        reachable[0, 0] = True
        for left in range(1, length + 1):
            after = (left - ends).clamp_min(0)
            while True:  # a token that ends nothing leads to another state with the same number to come
                fits = (following >= 0) & (ends <= left) & reachable[following.clamp_min(0), after]
                found = fits.any(1)
                if torch.equal(found, reachable[:, left]):
                    break
                reachable[:, left] = found
        if not reachable[0, length]:
            raise ConfigError(
                f"These action tokens can't spell a chunk of {length} numbers: the vocabulary lacks the pieces. "
                "Fit a tokenizer on the dataset: smolact train-tokenizer."
            )
        return cls(following, ends, reachable)

    @property
    def length(self) -> int:
        """Coefficients of a chunk."""
        return self.reachable.shape[1] - 1

    def to(self, device: torch.device | str) -> Grammar:
        """The same on a device."""
        return replace(
            self,
            following=self.following.to(device),
            ends=self.ends.to(device),
            reachable=self.reachable.to(device),
        )

    def start(self, batch: int) -> tuple[Tensor, Tensor]:
        """State and coefficients to come, both (B,), of nothing written."""
        device = self.following.device
        return torch.zeros(batch, dtype=torch.long, device=device), torch.full(
            (batch,), self.length, device=device
        )

    def allowed(self, state: Tensor, left: Tensor) -> Tensor:
        """Which tokens may come, (B, V) bool; none when a chunk is complete."""
        following, ends = self.following[state], self.ends[state]
        after = left[:, None] - ends
        return (following >= 0) & (after >= 0) & self.reachable[following.clamp_min(0), after.clamp_min(0)]

    def advance(self, state: Tensor, left: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
        """State and coefficients to come after a token (B,) that was allowed."""
        return self.following[state, token], left - self.ends[state, token]

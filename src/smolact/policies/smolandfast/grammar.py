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
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from smolact.errors import ActionTokensError, ConfigError


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

    @property
    def longest(self) -> int:
        """No chunk has more tokens than this."""
        opening = (self.following >= 0) & (self.ends == 0)
        tokens = torch.ones(len(self.following), dtype=torch.int64, device=self.following.device)
        for _ in range(
            len(tokens)
        ):  # tokens of one coefficient: what ends nothing leads deeper, never around
            deeper = torch.where(opening, 1 + tokens[self.following.clamp_min(0)], 1).amax(1)
            if torch.equal(deeper, tokens):
                break
            tokens = deeper
        return int(tokens.max()) * self.length


class GrammarTable:
    """A grammar for a loop that should do little: state and coefficients to come are one number, a *node*, and the end is a token.

    Node 0 is a complete chunk; there the end token, whose id is V, may come, and nothing else ever again.

    Attributes:
        barred: (S · (N + 1), V + 1) bool, whether a token can't come at a node.
        start: the node of nothing written.
        end: V.
    """

    def __init__(self, grammar: Grammar) -> None:
        states, self.end = grammar.following.shape
        self._width = width = grammar.length + 1
        self.start = grammar.length
        device = grammar.following.device
        numbers = torch.arange(states, device=device)
        # How far a token moves along the nodes does not depend on how many coefficients are to come.
        moves = (grammar.following - numbers[:, None]) * width - grammar.ends
        self._moves = F.pad(moves, (0, 1))
        barred = [~grammar.allowed(numbers, torch.full_like(numbers, left)) for left in range(width)]
        self.barred = F.pad(torch.stack(barred, 1).flatten(0, 1), (0, 1), value=True)
        self.barred[0] = True
        self.barred[0, self.end] = False

    def advance(self, node: Tensor, token: Tensor) -> Tensor:
        """The nodes (B,) after tokens (B,) that were not barred."""
        return node + self._moves[node // self._width, token]


def unfinished(answers: int, of: int, tokens: int, length: int) -> ActionTokensError:
    """Some answers are no whole chunk of `length` numbers after so many tokens."""
    return ActionTokensError(
        f"{answers} of {of} answers were not done after {tokens} tokens: a chunk of {length} numbers takes more. Raise "
        "--policy.max_decoding_steps."
    )

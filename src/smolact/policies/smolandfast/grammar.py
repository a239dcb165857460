"""The grammar of action tokens: it allows whole chunks of actions and nothing else.

A chunk is a fixed number of coefficients, spelled by tokens: a token may complete several of them, or end inside one. So two
numbers describe the progress: the state (the position inside a coefficient) and the number of remaining coefficients. The
three tables of a `Grammar` contain each token's effect on them. They are on the device of the logits, so that nothing waits
for the host.
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
        following: (S, V) int64, the state after a token; −1 where the token is not allowed.
        ends: (S, V) int64, the number of coefficients that the token completes.
        reachable: (S, N + 1) bool, whether a state with so many remaining coefficients leads to a whole chunk.
    """

    following: Tensor
    ends: Tensor
    reachable: Tensor

    @classmethod
    def of(cls, following: Tensor, ends: Tensor, length: int) -> Grammar:
        """Build the grammar of `length` coefficients.

        Raises:
            ConfigError: the tokens can't spell a chunk of that length.
        """
        reachable = torch.zeros(len(following), length + 1, dtype=torch.bool)
        reachable[0, 0] = True
        for remaining in range(1, length + 1):
            after = (remaining - ends).clamp_min(0)
            while True:  # a token that completes nothing leads to another state with as many remaining
                fits = (following >= 0) & (ends <= remaining) & reachable[following.clamp_min(0), after]
                found = fits.any(1)
                if torch.equal(found, reachable[:, remaining]):
                    break
                reachable[:, remaining] = found
        if not reachable[0, length]:
            raise ConfigError(
                f"These action tokens can't spell a chunk of {length} numbers: the vocabulary lacks the pieces. "
                "Fit a tokenizer on the dataset: smolact train-tokenizer."
            )
        return cls(following, ends, reachable)

    @property
    def length(self) -> int:
        """Number of coefficients of a chunk."""
        return self.reachable.shape[1] - 1

    def to(self, device: torch.device | str) -> Grammar:
        """Return the grammar on a device."""
        return replace(
            self,
            following=self.following.to(device),
            ends=self.ends.to(device),
            reachable=self.reachable.to(device),
        )

    def start(self, batch: int) -> tuple[Tensor, Tensor]:
        """Return the initial state and remaining coefficients, both (B,)."""
        device = self.following.device
        return torch.zeros(batch, dtype=torch.long, device=device), torch.full(
            (batch,), self.length, device=device
        )

    def allowed(self, state: Tensor, remaining: Tensor) -> Tensor:
        """Return the mask of allowed tokens, (B, V) bool; all false when a chunk is complete."""
        following, ends = self.following[state], self.ends[state]
        after = remaining[:, None] - ends
        return (following >= 0) & (after >= 0) & self.reachable[following.clamp_min(0), after.clamp_min(0)]

    def advance(self, state: Tensor, remaining: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
        """Return state and remaining coefficients after a token (B,) that was allowed."""
        return self.following[state, token], remaining - self.ends[state, token]

    @property
    def longest(self) -> int:
        """The maximum number of tokens of a chunk."""
        completes_none = (self.following >= 0) & (self.ends == 0)
        tokens = torch.ones(len(self.following), dtype=torch.int64, device=self.following.device)
        for _ in range(len(tokens)):  # tokens of one coefficient; those that end none never form a cycle
            deeper = torch.where(completes_none, 1 + tokens[self.following.clamp_min(0)], 1).amax(1)
            if torch.equal(deeper, tokens):
                break
            tokens = deeper
        return int(tokens.max()) * self.length


class GrammarTable:
    """A grammar in fewer operations: state and remaining coefficients are one number, a *node*, and the end is a token.

    Node 0 is a complete chunk, where only the end token is allowed, whose id is V.

    Attributes:
        barred: (S · (N + 1), V + 1) bool, whether a token is not allowed at a node.
        start: the initial node.
        end: V.
    """

    def __init__(self, grammar: Grammar) -> None:
        states, self.end = grammar.following.shape
        self._width = width = grammar.length + 1
        self.start = grammar.length
        device = grammar.following.device
        numbers = torch.arange(states, device=device)
        # A token's step along the nodes does not depend on the number of remaining coefficients.
        moves = (grammar.following - numbers[:, None]) * width - grammar.ends
        self._moves = F.pad(moves, (0, 1))
        barred = [~grammar.allowed(numbers, torch.full_like(numbers, left)) for left in range(width)]
        self.barred = F.pad(torch.stack(barred, 1).flatten(0, 1), (0, 1), value=True)
        self.barred[0] = True
        self.barred[0, self.end] = False

    def advance(self, node: Tensor, token: Tensor) -> Tensor:
        """Return the nodes (B,) after tokens (B,) that were allowed."""
        return node + self._moves[node // self._width, token]


def unfinished_error(answers: int, batch: int, tokens: int, length: int) -> ActionTokensError:
    """Return the error for answers that are no whole chunk of `length` numbers after so many tokens."""
    return ActionTokensError(
        f"{answers} of {batch} answers were not done after {tokens} tokens: a chunk of {length} numbers takes more. Raise "
        "--policy.max_decoding_steps."
    )

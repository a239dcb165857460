"""Schemes of action tokens: FAST tokens (`action_tokenizer`), one token a value, or numbers in plain text.

Each scheme converts normalized chunks (N, T, D) to lists of action ids and back, defines the allowed sequences of ids, and
maps ids to words of the language model.
"""

# N chunks, T steps, D dimensions.

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from smolact.errors import ActionTokensError, ConfigError, FeatureError
from smolact.policies.smolandfast.grammar import Grammar
from smolact.processors.tokenizer import Tokenizer

DIGITS = "0123456789"
SPACE = " "
END = "<end_of_utterance>"


@dataclass(frozen=True)
class ActionVocabulary:
    """The words of action tokens.

    Attributes:
        words: the language model's token for each action token.
        end: the token that ends an answer.
        pad: the padding token.
    """

    words: tuple[int, ...]
    end: int
    pad: int

    @classmethod
    def of(cls, words: tuple[int, ...], tokenizer: Tokenizer) -> ActionVocabulary:
        """Make a vocabulary with a tokenizer's own end and padding tokens."""
        end = tokenizer.token_id(END) if tokenizer.end_token_id is None else tokenizer.end_token_id
        return cls(words, end, tokenizer.pad_token_id)

    def spoken(self, ids: Tensor) -> Tensor:
        """Return the words of action tokens, of any shape."""
        return torch.tensor(self.words, device=ids.device)[ids]


class ActionTokens(ABC):
    """A scheme of action tokens; the language model's words for them are by default its vocabulary's last ones."""

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """The number of action ids."""

    @abstractmethod
    def encode(self, chunks: NDArray[Any]) -> list[list[int]]:
        """Encode normalized chunks (N, T, D) as ids."""

    @abstractmethod
    def decode(self, ids: Sequence[Sequence[int]], horizon: int, dim: int) -> NDArray[np.float32]:
        """Decode ids to chunks (N, T, D).

        Raises:
            ActionTokensError: some ids form no chunk of that shape.
        """

    @abstractmethod
    def grammar(self, horizon: int, dim: int) -> Grammar:
        """Return the allowed sequences of ids."""

    def shape(self, horizon: int, dim: int) -> tuple[int, int]:
        """Return T and D as they are used.

        Raises:
            ConfigError: the scheme can't write such chunks.
        """
        return horizon, dim

    def words(self, tokenizer: Tokenizer, skipped: int) -> tuple[int, ...]:
        """Return the language model's token for each id: its last ones but `skipped`, counted downwards, as in π0-FAST.

        Raises:
            ConfigError: it has too few, or lacks the required ones.
        """
        size = tokenizer.vocab_size
        if self.vocab_size + skipped > size:
            raise ConfigError(
                f"{self.vocab_size} action tokens do not fit into a vocabulary of {size} with {skipped} skipped at its "
                f"end. Fit a tokenizer with --vocab_size={max(0, size - skipped)} or less (smolact train-tokenizer), or "
                "lower --policy.fast_skip_tokens."
            )
        return tuple(size - 1 - skipped - number for number in range(self.vocab_size))

    def save(self, folder: Path) -> None:  # noqa: B027
        """Write the scheme's own files of a checkpoint; most have none."""


@dataclass(frozen=True)
class Bins(ActionTokens):
    """One token a value: its bin of `n` over [−1, 1], as the vocabulary's last words. RT-2 and OpenVLA write actions this way."""

    n: int

    @property
    def vocab_size(self) -> int:
        """The number of bins."""
        return self.n

    def encode(self, chunks: NDArray[Any]) -> list[list[int]]:
        """Return bins, step by step; a value outside of [−1, 1] falls into the first or the last."""
        bins = np.floor((validated(chunks) + 1) / 2 * self.n).astype(np.int64)
        ids: list[list[int]] = bins.clip(0, self.n - 1).reshape(len(chunks), -1).tolist()
        return ids

    def decode(self, ids: Sequence[Sequence[int]], horizon: int, dim: int) -> NDArray[np.float32]:
        """Return the middles of the bins."""
        return _to_chunks(ids, horizon, dim, self.n, lambda bins: (bins + 0.5) * 2 / self.n - 1)

    def grammar(self, horizon: int, dim: int) -> Grammar:
        """Allow any bin after any other."""
        ends = torch.ones(1, self.n, dtype=torch.int64)
        return Grammar.of(torch.zeros_like(ends), ends, horizon * dim)


@dataclass(frozen=True)
class Text(ActionTokens):
    """Whole numbers from 0 to `levels` in plain digits, a space after each: words of every language model.

    Source: A. Goyal et al., 2025, "VLA-0: Building State-of-the-Art VLAs with Zero Modification".
    """

    levels: int

    @property
    def vocab_size(self) -> int:
        """Ten digits and the space."""
        return len(DIGITS) + 1

    def encode(self, chunks: NDArray[Any]) -> list[list[int]]:
        """Return digits and spaces, step by step; a value outside of [−1, 1] becomes the first or the last number."""
        numbers = np.rint((validated(chunks) + 1) / 2 * self.levels).astype(np.int64)
        symbols = DIGITS + SPACE
        return [
            [symbols.index(c) for number in row for c in f"{number} "]
            for row in numbers.clip(0, self.levels).reshape(len(chunks), -1).tolist()
        ]

    def decode(self, ids: Sequence[Sequence[int]], horizon: int, dim: int) -> NDArray[np.float32]:
        """Return the numbers that are written."""
        symbols = DIGITS + SPACE
        rows: list[list[int]] = []
        for row in ids:
            if not all(0 <= token < len(symbols) for token in row):
                raise ActionTokensError(f"Action tokens are 0 to {len(symbols) - 1}, found {list(row)[:20]}.")
            text = "".join(symbols[token] for token in row)
            if (row and not text.endswith(SPACE)) or "  " in text or text.startswith(SPACE):
                raise ActionTokensError(f"'{text[-40:]}' is no row of numbers with a space after each.")
            rows.append([int(number) for number in text.split()])
        return _to_chunks(rows, horizon, dim, self.levels + 1, lambda numbers: numbers * 2 / self.levels - 1)

    def grammar(self, horizon: int, dim: int) -> Grammar:
        """Allow numbers from 0 to `levels` without leading zeros: one state for each prefix of one."""
        states = {"": 0}
        for number in range(self.levels + 1):
            for end in range(1, len(str(number)) + 1):
                states.setdefault(str(number)[:end], len(states))
        following = torch.full((len(states), self.vocab_size), -1, dtype=torch.int64)
        ends = torch.zeros_like(following)
        for prefix, state in states.items():
            for digit in range(10):
                if prefix != "0":
                    following[state, digit] = states.get(f"{prefix}{digit}", -1)
            if prefix:
                following[state, len(DIGITS)], ends[state, len(DIGITS)] = 0, 1
        return Grammar.of(following, ends, horizon * dim)

    def words(self, tokenizer: Tokenizer, skipped: int) -> tuple[int, ...]:
        """Return the digits' own words, and the space's."""
        words = [tokenizer.encode(character) for character in DIGITS + SPACE]
        if any(len(word) != 1 for word in words) or len({word[0] for word in words}) < len(words):
            raise ConfigError(
                "This VLM's tokenizer has no word for each digit and the space, so actions can't be written as text. Use "
                "--policy.action_tokens=fast or bins."
            )
        return tuple(word[0] for word in words)


def validated(chunks: NDArray[Any]) -> NDArray[np.float64]:
    """Return chunks in float64.

    Raises:
        FeatureError: they are not (N, T, D), or not finite.
    """
    array = np.asarray(chunks)
    if array.ndim != 3 or 0 in array.shape:
        raise FeatureError(f"Chunks have the shape {array.shape}: expected (chunks, steps, dimensions).")
    if not np.isfinite(array).all():
        raise FeatureError("A chunk of actions holds a number that is not finite.")
    return array.astype(np.float64)


def _to_chunks(
    rows: Sequence[Sequence[int]], horizon: int, dim: int, size: int, value: Any
) -> NDArray[np.float32]:
    for row in rows:
        if len(row) != horizon * dim:
            raise ActionTokensError(f"{len(row)} numbers are no chunk: expected {horizon} × {dim}.")
        if row and not 0 <= min(row) <= max(row) < size:
            raise ActionTokensError(f"A number of an action is outside of 0 to {size - 1}: {list(row)[:20]}.")
    numbers = np.array(rows, np.float64).reshape(len(rows), horizon, dim)
    return np.asarray(value(numbers), np.float32)

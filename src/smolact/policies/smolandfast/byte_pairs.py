"""Byte-pair encoding of many texts at once: all independent merges are made together, in a few NumPy operations.

Byte-pair encoding merges the earliest pair of a word, then the earliest of the rest, and so on. Most of these merges do
not depend on each other: a pair may be merged now if no merge that may still arise next to it would take one of its
halves first. Tables bound these merges: those of a token with tokens to its right, given its neighbour, and to its left.
Bounds cover a few tokens; where they decide nothing they cover more, until they do. So the ids are exactly those of merging
one by one.
"""

# N texts, L characters of each; S symbols, of all texts one after the other; V tokens.

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from smolact.errors import ConfigError
from smolact.policies.smolandfast.words import CUT, Codes, byte_of_character, bytes_of_characters, word_starts

Ints = NDArray[np.int64]
Priority = NDArray[np.int16]
"""The priority of a merge: the earliest has the largest number, and 0 is none."""

MAX_TOKENS = 4096
"""Larger vocabularies would need tables of more than 134 MB."""
FEW = 32
"""Number of texts; with fewer the `tokenizers` library is faster."""
REACH = 2
"""Tokens that bounds cover at first."""
AT_ONCE = 512
"""Number of texts encoded together: more would only take more memory."""
_TEXT_START = 2
"""Marks the first symbol of a text; 1 marks that of a word."""


class BatchEncoder:
    """Encodes texts as token ids, as a byte-level tokenizer does."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        vocabulary = tokenizer.get_vocab()
        tokens = np.full(257, -1)  # of each byte, and of none
        for name, byte in byte_of_character().items():
            tokens[byte] = vocabulary.get(name, -1)
        has = tokens >= 0
        has[-1] = True
        self._writable: NDArray[np.bool_] = np.all(has[bytes_of_characters()], 0)
        self._characters: Ints = np.flatnonzero(self._writable)
        settings = json.loads(tokenizer.to_str())
        plain = _is_plain(settings) and sorted(vocabulary.values()) == list(range(len(vocabulary)))
        self._pairs = (
            BytePairs(vocabulary, settings["model"]["merges"], tokens)
            if plain and len(vocabulary) <= MAX_TOKENS
            else None
        )

    def nearest(self, numbers: Ints) -> Codes:
        """Return the characters of whole numbers (N, L) that the vocabulary can write: themselves, or the nearest ones.

        Byte-pair encoding would drop a character without a token, and with it a number of the chunk.

        Raises:
            ConfigError: the vocabulary can write no character.
        """
        writable = self._characters
        if not len(writable):
            raise ConfigError(
                "This tokenizer has no token for any byte. Fit another: smolact train-tokenizer."
            )
        if numbers.min() >= 0 and numbers.max() < len(self._writable) and self._writable[numbers].all():
            return numbers.astype(np.uint32)
        index = np.searchsorted(writable, numbers)
        above, below = writable[np.minimum(index, len(writable) - 1)], writable[np.maximum(index - 1, 0)]
        return np.where(np.abs(numbers - below) <= np.abs(above - numbers), below, above).astype(np.uint32)

    def encode(self, codes: Codes) -> list[list[int]]:
        """Encode texts (N, L), given as the numbers of characters that the vocabulary can write (see `nearest`)."""
        if self._pairs is not None and len(codes) >= FEW and codes.max() < CUT:
            blocks = (codes[begin : begin + AT_ONCE] for begin in range(0, len(codes), AT_ONCE))
            return [ids for block in blocks for ids in self._pairs.encode(block)]
        texts = [row.astype("<u4").tobytes().decode("utf-32-le") for row in codes]
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]


class BytePairs:
    """The merges of a vocabulary.

    Args:
        vocabulary: ids of tokens, 0 to V − 1.
        merges: pairs of tokens that become one, the earliest first.
        tokens: of each byte, and last of none, (257,); −1 where there is no token.
    """

    def __init__(self, vocabulary: Mapping[str, int], merges: Sequence[Sequence[str]], tokens: Ints) -> None:
        self._size = size = len(vocabulary)
        ids = np.array([(vocabulary[a], vocabulary[b], vocabulary[a + b]) for a, b in merges]).reshape(-1, 3)
        priority = np.arange(len(ids), 0, -1)
        self._merged_token = np.zeros(len(ids) + 1, np.int64)
        self._merged_token[priority] = ids[:, 2]
        self._tokens = tokens[bytes_of_characters()[1:, :CUT].T.copy()]

        direct = np.zeros((size, size), np.int16)
        direct[ids[:, 0], ids[:, 1]] = priority
        right, left = direct.T.copy(), direct.copy()
        length = {number: len(token) for token, number in vocabulary.items()}
        for first, second, merged in sorted(ids.tolist(), key=lambda each: -length[each[2]]):
            np.maximum(right[first], right[merged], out=right[first])
            np.maximum(left[second], left[merged], out=left[second])
        pairs = np.zeros((size + 1, size, 4), np.int16)  # the last row is for the first symbol of a word
        for number, table in enumerate((direct, right.T, left)):
            pairs[:size, :, number] = table
        self._pairs = pairs.view(np.int64).ravel()

    def encode(self, codes: Codes) -> list[list[int]]:
        """Encode texts (N, L), given as characters' numbers below `CUT`; each of their bytes must be a token."""
        starts = word_starts(codes).astype(np.int8)
        starts[:, 0] = _TEXT_START
        tokens = self._tokens[codes]  # of two bytes, or of one after a −1
        marks = np.stack([starts, np.where(tokens[..., 0] < 0, starts, 0)], -1)
        present = np.flatnonzero(tokens.ravel() >= 0)
        symbols, starts = self._merge(
            np.append(tokens.ravel()[present], 0), np.append(marks.ravel()[present], np.int8(_TEXT_START))
        )
        ids = symbols.tolist()
        return [ids[begin:end] for begin, end in pairwise(np.flatnonzero(starts == _TEXT_START).tolist())]

    def _merge(self, symbols: Ints, starts: NDArray[np.int8]) -> tuple[Ints, NDArray[np.int8]]:
        """Return symbols (S,) and their start marks after all merges; the last symbol is a sentinel."""
        pairs = self._pairs_at(np.arange(len(symbols)), symbols, starts)
        reach = REACH
        while True:
            direct, right, left = np.ascontiguousarray(pairs.view(np.int16).reshape(-1, 4)[:, :3].T)
            mergeable = _mergeable(direct, right, left, reach)
            if not len(mergeable):
                if not direct.any():
                    return symbols, starts
                reach *= 2  # with enough reach, the first of a word's earliest pairs is mergeable
                continue
            reach = REACH
            symbols[mergeable] = self._merged_token[direct[mergeable]]
            starts[mergeable] = starts[mergeable - 1]
            mask = np.ones(len(symbols), np.bool_)
            mask[mergeable - 1] = False
            remaining = np.flatnonzero(mask)  # indexing is ten times as fast as masking
            symbols, starts, pairs = symbols[remaining], starts[remaining], pairs[remaining]
            merged = mergeable - np.arange(1, len(mergeable) + 1)
            for indices in (merged, merged + 1):
                pairs[indices] = self._pairs_at(indices, symbols, starts)

    def _pairs_at(self, indices: Ints, symbols: Ints, starts: NDArray[np.int8]) -> Ints:
        """Return the table entries of the symbols at some indices, each with the one before it."""
        before = np.where(starts[indices], self._size, symbols[indices - 1])
        return self._pairs[before * self._size + symbols[indices]]


def _mergeable(direct: Priority, right: Priority, left: Priority, reach: int) -> Ints:
    """Return the pairs of (S,) that may be merged now, by the index of their right halves.

    Args:
        direct: the priority of a pair's merge.
        right, left: the highest priority of a merge of its left half as the right half grows, and the other way round.
        reach: the number of tokens considered on either side.
    """
    after, before = right.copy(), left.copy()  # upper bounds, given the neighbours
    for _ in range(reach):
        np.minimum(right[:-1], np.maximum(direct[:-1], after[1:]), out=after[:-1])
        np.minimum(left[1:], np.maximum(direct[1:], before[:-1]), out=before[1:])
    candidates = direct[1:-1] >= np.maximum(after[2:], before[:-2])
    candidates &= direct[1:-1] > 0
    mergeable: Ints = np.flatnonzero(candidates) + 1
    is_earliest = direct[mergeable] > before[mergeable - 1]
    if is_earliest.all():
        return mergeable
    # Pairs of one repeated token have equal priority and are merged from the left: every other one, if the first is.
    run_starts = np.flatnonzero(np.append(True, mergeable[1:] != mergeable[:-1] + 1))
    run_start = np.repeat(run_starts, np.diff(run_starts, append=len(mergeable)))
    odd = (np.arange(len(mergeable)) - run_start) & 1
    return mergeable[np.flatnonzero(is_earliest[run_start] > odd)]


def _is_plain(settings: Mapping[str, Any]) -> bool:
    """Whether merges alone determine the ids, in words split as by GPT-2."""
    model, before = settings["model"], settings["pre_tokenizer"] or {}
    return (
        model.get("type") == "BPE"
        and not any(
            model.get(name) for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix")
        )
        and not model.get("ignore_merges")
        and not settings.get("normalizer")
        and not settings.get("added_tokens")
        and before.get("type") == "ByteLevel"
        and before.get("use_regex", True)
        and not before.get("add_prefix_space")
    )

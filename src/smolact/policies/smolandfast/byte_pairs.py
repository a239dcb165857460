"""Byte-pair encoding of many texts at once: every merge that need not wait is made, in a handful of NumPy operations.

Byte-pair encoding merges the earliest pair of a word, then the earliest of what is left, and so on. Most of these merges do
not depend on each other: a pair may be merged now if nothing that could still come about beside it would take one of its
halves first. Tables bound that: what may ever merge with a token on its right, given what stands there, and on its left.
Bounds look a few tokens far; where that decides nothing they look further, until it does. So the ids are exactly those that
merging one by one gives.
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
from smolact.policies.smolandfast.words import (
    CUT,
    Codes,
    byte_of_character,
    bytes_of_characters,
    word_starts,
)

Ints = NDArray[np.int64]
Urgency = NDArray[np.int16]
"""How early a merge is: the earliest has the largest number, and 0 is none."""

MAX_TOKENS = 4096
"""Larger vocabularies would need tables of more than 134 MB."""
FEW = 32
"""Texts; with fewer the `tokenizers` library is quicker."""
REACH = 2
"""Tokens that bounds look far, at first."""
AT_ONCE = 512
"""Texts that are encoded together: more would only take more memory."""
_TEXT = 2
"""Marks the symbol that a text begins with; 1 marks a word's."""


class BatchEncoder:
    """Token ids of texts, as a byte-level tokenizer gives them."""

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
        """For whole numbers (N, L) the characters that the vocabulary can write: themselves, or the nearest ones.

        Byte-pair encoding would drop a character that it has no piece for, and with it a number of the chunk.

        Raises:
            ConfigError: the vocabulary can write no character.
        """
        able = self._characters
        if not len(able):
            raise ConfigError(
                "This tokenizer has no token for any byte. Fit another: smolact train-tokenizer."
            )
        if numbers.min() >= 0 and numbers.max() < len(self._writable) and self._writable[numbers].all():
            return numbers.astype(np.uint32)
        place = np.searchsorted(able, numbers)
        above, below = able[np.minimum(place, len(able) - 1)], able[np.maximum(place - 1, 0)]
        return np.where(np.abs(numbers - below) <= np.abs(above - numbers), below, above).astype(np.uint32)

    def encode(self, codes: Codes) -> list[list[int]]:
        """Ids of texts (N, L), given as the numbers of characters that the vocabulary can write (see `nearest`)."""
        if self._pairs is not None and len(codes) >= FEW and codes.max() < CUT:
            blocks = (codes[begin : begin + AT_ONCE] for begin in range(0, len(codes), AT_ONCE))
            return [ids for block in blocks for ids in self._pairs.encode(block)]
        texts = [row.astype("<u4").tobytes().decode("utf-32-le") for row in codes]
        found = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in found]


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
        urgency = np.arange(len(ids), 0, -1)
        self._made = np.zeros(len(ids) + 1, np.int64)
        self._made[urgency] = ids[:, 2]
        self._tokens = tokens[bytes_of_characters()[1:, :CUT].T.copy()]

        now = np.zeros((size, size), np.int16)
        now[ids[:, 0], ids[:, 1]] = urgency
        right, left = now.T.copy(), now.copy()
        length = {number: len(token) for token, number in vocabulary.items()}
        for first, second, made in sorted(ids.tolist(), key=lambda each: -length[each[2]]):
            np.maximum(right[first], right[made], out=right[first])
            np.maximum(left[second], left[made], out=left[second])
        pairs = np.zeros((size + 1, size, 4), np.int16)  # the last row is for what begins a word
        for number, table in enumerate((now, right.T, left)):
            pairs[:size, :, number] = table
        self._pairs = pairs.view(np.int64).ravel()

    def encode(self, codes: Codes) -> list[list[int]]:
        """Ids of texts (N, L), given as characters' numbers, all below `CUT`; each of their bytes must be a token."""
        begins = word_starts(codes).astype(np.int8)
        begins[:, 0] = _TEXT
        tokens = self._tokens[codes]  # of two bytes, or of one after a −1
        marks = np.stack([begins, np.where(tokens[..., 0] < 0, begins, 0)], -1)
        there = np.flatnonzero(tokens.ravel() >= 0)
        symbols, begins = self._merged(
            np.append(tokens.ravel()[there], 0), np.append(marks.ravel()[there], np.int8(_TEXT))
        )
        ids = symbols.tolist()
        return [ids[begin:end] for begin, end in pairwise(np.flatnonzero(begins == _TEXT).tolist())]

    def _merged(self, symbols: Ints, begins: NDArray[np.int8]) -> tuple[Ints, NDArray[np.int8]]:
        """Symbols (S,) and what begins with each, after all merges; the last one stands for the end."""
        pairs = self._pairs_at(np.arange(len(symbols)), symbols, begins)
        reach = REACH
        while True:
            now, right, left = np.ascontiguousarray(pairs.view(np.int16).reshape(-1, 4)[:, :3].T)
            due = _due(now, right, left, reach)
            if not len(due):
                if not now.any():
                    return symbols, begins
                reach *= 2  # far enough, the first of the most urgent pairs of a word is due
                continue
            reach = REACH
            symbols[due] = self._made[now[due]]
            begins[due] = begins[due - 1]
            stays = np.ones(len(symbols), np.bool_)
            stays[due - 1] = False
            stay = np.flatnonzero(stays)  # taking places is ten times as fast as masking
            symbols, begins, pairs = symbols[stay], begins[stay], pairs[stay]
            made = due - np.arange(1, len(due) + 1)
            for places in (made, made + 1):
                pairs[places] = self._pairs_at(places, symbols, begins)

    def _pairs_at(self, places: Ints, symbols: Ints, begins: NDArray[np.int8]) -> Ints:
        """What the tables say of the symbols at some places, each with the one before it."""
        before = np.where(begins[places], self._size, symbols[places - 1])
        return self._pairs[before * self._size + symbols[places]]


def _due(now: Urgency, right: Urgency, left: Urgency, reach: int) -> Ints:
    """Which pairs of (S,), named by their right halves, may be merged now.

    Args:
        now: how urgent a pair's merge is.
        right, left: how urgent one of its left half may become as the right half grows, and the other way round.
        reach: how many tokens are looked at on either side.
    """
    after, before = right.copy(), left.copy()  # as urgent at most, given what stands beside
    for _ in range(reach):
        np.minimum(right[:-1], np.maximum(now[:-1], after[1:]), out=after[:-1])
        np.minimum(left[1:], np.maximum(now[1:], before[:-1]), out=before[1:])
    able = now[1:-1] >= np.maximum(after[2:], before[:-2])
    able &= now[1:-1] > 0
    due: Ints = np.flatnonzero(able) + 1
    sure = now[due] > before[due - 1]
    if sure.all():
        return due
    # Pairs of one token many times over are equally urgent, and are merged from the left: every other one, if the first is.
    opens = np.flatnonzero(np.append(True, due[1:] != due[:-1] + 1))
    opening = np.repeat(opens, np.diff(opens, append=len(due)))
    odd = (np.arange(len(due)) - opening) & 1
    return due[np.flatnonzero(sure[opening] > odd)]


def _is_plain(settings: Mapping[str, Any]) -> bool:
    """Whether nothing but merges decides, in words as GPT-2 cuts them."""
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

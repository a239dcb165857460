"""Byte-pair encoding of many short texts that resemble each other, as chunks of actions do: no segment is encoded twice.

A text falls into segments between which nothing ever merges: two characters whose bytes stand side by side in no token of the
vocabulary. Segments are short and come again and again, so most are found in a table, and the ids of a text are those of
its segments. This is exact: byte-pair encoding merges neighbours only, and every merge makes a token.
"""

# N texts, L characters of each.

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain, islice, pairwise

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from smolact.errors import FeatureError

Codes = NDArray[np.uint32]

MOST_KNOWN = 1 << 17
"""Segments that are remembered; when there are more, it begins anew."""
_HOLDS = 256
"""What a character is counted as after which no segment may end."""
_SPACES = (
    *range(0x09, 0x0E),
    0x20,
    0x85,
    0xA0,
    0x1680,
    *range(0x2000, 0x200B),
    0x2028,
    0x2029,
    0x202F,
    0x205F,
    0x3000,
)
_APOSTROPHE = ord("'")
_CHARACTERS = 0xD800
"""Characters from here on are not written: surrogates come first."""


class SegmentEncoder:
    """Token ids of texts.

    Args:
        tokenizer: byte-level byte-pair encoding. Texts of other kinds stay whole, and are remembered whole.
        spelled: the bytes of each id.
    """

    def __init__(self, tokenizer: Tokenizer, spelled: Sequence[bytes]) -> None:
        self._tokenizer = tokenizer
        self._known: dict[str, list[int]] = {}
        single = [
            byte for name, byte in byte_of_character().items() if tokenizer.token_to_id(name) is not None
        ]
        written = np.isin(_bytes_of_characters(), [*single, -1])
        self._writable = written[0] & written[1] & written[2]
        self._joined = np.ones((257, 256), np.bool_)
        if _is_plain(json.loads(tokenizer.to_str())):
            self._joined[:_HOLDS] = False
            for token in spelled:
                pair = np.frombuffer(token, np.uint8)
                self._joined[pair[:-1], pair[1:]] = True
            # English endings, "'s" and "'re", are words of their own where a word may begin: no segment begins with one.
            self._joined[:, _APOSTROPHE] = True

    def encode(self, codes: Codes) -> list[list[int]]:
        """Ids of texts (N, L), given as characters' numbers.

        Raises:
            FeatureError: the vocabulary lacks a byte of them.
        """
        if not self._writable[codes].all():  # byte-pair encoding drops what it has no piece for
            raise FeatureError(
                "A chunk has a coefficient that this tokenizer has no token for: it was fitted on smaller actions. "
                "Fit one on this dataset: smolact train-tokenizer."
            )
        ends = self._ends(codes)
        text = codes.astype("<u4").tobytes().decode("utf-32-le")
        segments = [text[begin:end] for begin, end in pairwise([0, *(np.flatnonzero(ends) + 1).tolist()])]
        self._learn(set(segments))
        parts = map(self._known.__getitem__, segments)
        return [list(chain.from_iterable(islice(parts, count))) for count in ends.sum(1).tolist()]

    def _ends(self, codes: Codes) -> NDArray[np.bool_]:
        """After which characters (N, L) a segment ends."""
        first, last = _outer_bytes()
        ends = np.ones(codes.shape, np.bool_)
        np.logical_not(self._joined[last[codes[:, :-1]], first[codes[:, 1:]]], out=ends[:, :-1])
        apostrophes = codes == _APOSTROPHE
        if apostrophes.any():  # … and none ends in the middle of one
            ends[:, 1:-1] &= ~apostrophes[:, :-2]
        return ends

    def _learn(self, segments: set[str]) -> None:
        if len(self._known) > MOST_KNOWN:
            self._known.clear()
        missing = list(segments - self._known.keys())
        found = self._tokenizer.encode_batch_fast(missing, add_special_tokens=False)
        self._known.update(zip(missing, [encoding.ids for encoding in found], strict=True))


def _is_plain(settings: dict[str, object]) -> bool:
    """Whether nothing but the neighbours of bytes, and the words that texts are cut into first, decides what is merged."""
    model, before = settings["model"], settings["pre_tokenizer"]
    assert isinstance(model, dict)
    return (
        model.get("type") == "BPE"
        and not any(
            model.get(name) for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix")
        )
        and not model.get("ignore_merges")
        and not settings.get("normalizer")
        and not settings.get("added_tokens")
        and isinstance(before, dict)
        and before.get("type") == "ByteLevel"
        and not before.get("add_prefix_space")
    )


@lru_cache(maxsize=1)
def byte_of_character() -> dict[str, int]:
    """The characters that byte-level vocabularies write bytes as: printable ones as they are, the rest from 256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + number): byte for number, byte in enumerate(others)
    }


@lru_cache(maxsize=1)
def _bytes_of_characters() -> NDArray[np.int16]:
    """The bytes of each character in UTF-8, (3, characters): −1 before the first of those that have fewer."""
    code = np.arange(_CHARACTERS)
    one, two = code < 0x80, code < 0x800
    return np.stack(
        [
            np.where(two, -1, 0xE0 | code >> 12),
            np.where(one, -1, np.where(two, 0xC0 | code >> 6, 0x80 | code >> 6 & 0x3F)),
            np.where(one, code, 0x80 | code & 0x3F),
        ]
    ).astype(np.int16)


@lru_cache(maxsize=1)
def _outer_bytes() -> tuple[NDArray[np.int16], NDArray[np.int16]]:
    """The first and the last byte of each character in UTF-8; the last of a space or an apostrophe is `_HOLDS`.

    What ends in those may be cut into words differently if what follows is not there.
    """
    third, second, last = _bytes_of_characters()
    first = np.where(third >= 0, third, np.where(second >= 0, second, last))
    held = last.copy()
    held[[*_SPACES, _APOSTROPHE]] = _HOLDS
    return first, held

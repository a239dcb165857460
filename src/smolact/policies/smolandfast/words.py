"""Characters as byte-level vocabularies see them: their bytes, and where words begin among them."""

# N texts, L characters of each.

from __future__ import annotations

import unicodedata
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.uint32]

FIRST_SURROGATE = 0xD800
"""Characters from here on can't all be written."""
CUT = 0x800
"""Characters below this one can be cut into words; they have two bytes at most, and Unicode will not change them."""
_SPACE, _LETTER, _DIGIT, _SIGN = range(4)
_SPACES = (*range(0x09, 0x0E), 0x20, 0x85, 0xA0)
_ENDINGS = ("s", "t", "m", "d", "re", "ve", "ll")
"""English ones, words of their own behind an apostrophe."""
_LONGEST = 3
"""An apostrophe with an ending: so many columns behind each text can be looked at without a thought."""


def word_starts(codes: Codes) -> NDArray[np.bool_]:
    """Where words begin in texts (N, L) of characters below `CUT`, cut as for GPT-2:

    's|'t|'re|'ve|'m|'ll|'d| ?letters| ?digits| ?signs|spaces but the last before a word|spaces
    """
    count, length = codes.shape
    text = np.zeros((count, length + _LONGEST), codes.dtype)
    kind = np.full(text.shape, _SPACE, np.int8)
    text[:, :length], kind[:, :length] = codes, _kinds()[codes]
    starts = np.ones(text.shape, np.bool_)
    np.not_equal(kind[:, 1:], kind[:, :-1], out=starts[:, 1:])
    text, kind, flat = text.ravel(), kind.ravel(), starts.ravel()
    spaces = np.flatnonzero(kind[:-1] == _SPACE)
    last = spaces[kind[spaces + 1] != _SPACE]
    flat[last] = True
    flat[last[text[last] == ord(" ")] + 1] = False  # the word takes a plain one along
    quotes = np.flatnonzero((text == ord("'")) & flat)
    for ending in _ENDINGS if len(quotes) else ():
        found = quotes
        for place, letter in enumerate(ending, 1):
            found = found[text[found + place] == ord(letter)]
        flat[found + 1] = False
        flat[found + 1 + len(ending)] = True
    return starts[:, :length]


@lru_cache(maxsize=1)
def _kinds() -> NDArray[np.int8]:
    kinds = {"L": _LETTER, "N": _DIGIT}
    found = np.array([kinds.get(unicodedata.category(chr(code))[0], _SIGN) for code in range(CUT)], np.int8)
    found[list(_SPACES)] = _SPACE
    return found


@lru_cache(maxsize=1)
def byte_of_character() -> dict[str, int]:
    """The characters that byte-level vocabularies write bytes as: printable ones as they are, the rest from 256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + number): byte for number, byte in enumerate(others)
    }


@lru_cache(maxsize=1)
def bytes_of_characters() -> NDArray[np.int16]:
    """The bytes of each character in UTF-8, (3, characters): −1 before the first of those that have fewer."""
    code = np.arange(FIRST_SURROGATE)
    one, two = code < 0x80, code < CUT
    return np.stack(
        [
            np.where(two, -1, 0xE0 | code >> 12),
            np.where(one, -1, np.where(two, 0xC0 | code >> 6, 0x80 | code >> 6 & 0x3F)),
            np.where(one, code, 0x80 | code & 0x3F),
        ]
    ).astype(np.int16)

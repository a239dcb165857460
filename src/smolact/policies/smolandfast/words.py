"""Characters in byte-level vocabularies: their bytes, and the starts of words."""

# N texts, L characters of each.

from __future__ import annotations

import unicodedata
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.uint32]

FIRST_SURROGATE = 0xD800
"""Not all characters from here on can be encoded."""
CUT = 0x800
"""Characters below this one can be split into words; they have two bytes at most, and Unicode will not change them."""
_SPACE, _LETTER, _DIGIT, _MARK = range(4)
_SPACES = (*range(0x09, 0x0E), 0x20, 0x85, 0xA0)
_ENDINGS = ("s", "t", "m", "d", "re", "ve", "ll")
"""English endings that are words of their own behind an apostrophe."""
_PADDING = 3
"""Length of an apostrophe with an ending: so many padding columns behind each text replace bounds checks."""


def word_starts(codes: Codes) -> NDArray[np.bool_]:
    """Return where words begin in texts (N, L) of characters below `CUT`, split as for GPT-2:

    's|'t|'re|'ve|'m|'ll|'d| ?letters| ?digits| ?signs|spaces but the last before a word|spaces
    """
    count, length = codes.shape
    text = np.zeros((count, length + _PADDING), codes.dtype)
    kind = np.full(text.shape, _SPACE, np.int8)
    text[:, :length], kind[:, :length] = codes, _character_classes()[codes]
    starts = np.ones(text.shape, np.bool_)
    np.not_equal(kind[:, 1:], kind[:, :-1], out=starts[:, 1:])
    text, kind, flat = text.ravel(), kind.ravel(), starts.ravel()
    spaces = np.flatnonzero(kind[:-1] == _SPACE)
    last = spaces[kind[spaces + 1] != _SPACE]
    flat[last] = True
    flat[last[text[last] == ord(" ")] + 1] = False  # a plain space belongs to the word
    quotes = np.flatnonzero((text == ord("'")) & flat)
    for ending in _ENDINGS if len(quotes) else ():
        matches = quotes
        for offset, letter in enumerate(ending, 1):
            matches = matches[text[matches + offset] == ord(letter)]
        flat[matches + 1] = False
        flat[matches + 1 + len(ending)] = True
    return starts[:, :length]


@lru_cache(maxsize=1)
def _character_classes() -> NDArray[np.int8]:
    names = {"L": _LETTER, "N": _DIGIT}
    table = np.array([names.get(unicodedata.category(chr(code))[0], _MARK) for code in range(CUT)], np.int8)
    table[list(_SPACES)] = _SPACE
    return table


@lru_cache(maxsize=1)
def byte_of_character() -> dict[str, int]:
    """Return the byte of each character of byte-level vocabularies: printable ones as they are, the rest from 256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + number): byte for number, byte in enumerate(others)
    }


@lru_cache(maxsize=1)
def bytes_of_characters() -> NDArray[np.int16]:
    """Return the bytes of each character in UTF-8, (3, characters), after −1 for shorter ones."""
    code = np.arange(FIRST_SURROGATE)
    one_byte, two_bytes = code < 0x80, code < CUT
    return np.stack(
        [
            np.where(two_bytes, -1, 0xE0 | code >> 12),
            np.where(one_byte, -1, np.where(two_bytes, 0xC0 | code >> 6, 0x80 | code >> 6 & 0x3F)),
            np.where(one_byte, code, 0x80 | code & 0x3F),
        ]
    ).astype(np.int16)

"""Random sequences of action tokens, of which `decode` must make a chunk or a named error; also `scripts/torture`'s."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from smolact.errors import ActionTokensError
from smolact.policies.smolandfast.action_tokenizer import FASTTokenizer

DATA = Path(__file__).parents[2] / "parity" / "data"
FOLDERS = ("fast_tokenizer", "fast_tokenizer_small", "fast_tokenizer_wide")


def decode_many(count: int, seed: int) -> Counter[str]:
    """Decode `count` sequences with each kind of tokenizer in turn; how many were chunks, and how many refused.

    Raises:
        AssertionError: a chunk has not exactly its shape, or holds a number that is not finite.
    """
    found: Counter[str] = Counter()
    random = np.random.default_rng(seed)
    for number, name in enumerate(FOLDERS):
        tokenizer = FASTTokenizer.load(DATA / name)
        expected = np.load(DATA / name / "expected.npz")
        real = [[int(token) for token in row if token >= 0] for row in expected["tokens"]]
        shape = (1, *expected["chunks"].shape[1:])
        for ids in _sequences(real, tokenizer.vocab_size, (count + number) // len(FOLDERS), random):
            try:
                chunk = tokenizer.decode([ids])
            except ActionTokensError:
                found["refused"] += 1
                continue
            assert chunk.shape == shape and np.isfinite(chunk).all(), ids
            found["chunks"] += 1
    return found


def _sequences(
    real: Sequence[list[int]], size: int, count: int, random: np.random.Generator
) -> Iterator[list[int]]:
    """Half of them of any tokens, some of which there are not; half of them real ones, a few tokens of which are moved,
    changed, left out or doubled."""
    for number in range(count):
        if number % 2:
            length = int(random.integers(0, 140))
            yield random.integers(-1, size + 1, length).tolist()
            continue
        ids = list(real[int(random.integers(len(real)))])
        for _ in range(int(random.integers(1, 4))):
            place, other = random.integers(len(ids), size=2).tolist() if ids else (0, 0)
            change = int(random.integers(4))
            if change == 0:
                ids[place], ids[other] = ids[other], ids[place]
            elif change == 1:
                ids[place] = int(random.integers(size))
            elif change == 2 and len(ids) > 1:
                del ids[place]
            else:
                ids.insert(place, ids[other])
        yield ids

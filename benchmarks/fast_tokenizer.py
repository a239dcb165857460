"""FAST tokens, encoded and decoded: ours beside the calls that the reference processor makes, in one run.

    python benchmarks/fast_tokenizer.py [--folder=TOKENIZER] [--chunks=2000]

Needs transformers and scipy beside smolact. Prints chunks a second and their ratio.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.fft
from transformers import PreTrainedTokenizerFast

from smolact.policies.smolandfast.action_tokenizer import FASTTokenizer

FOLDER = Path(__file__).parents[1] / "tests" / "parity" / "data" / "fast_tokenizer"


class Reference:
    """What the reference does: one chunk after the other, through transformers' tokenizer."""

    def __init__(self, folder: Path) -> None:
        settings = json.loads((folder / "processor_config.json").read_text())
        self.scale, self.low = settings["scale"], settings["min_token"]
        self.shape = settings["time_horizon"], settings["action_dim"]
        self.words = PreTrainedTokenizerFast(
            tokenizer_file=str(folder / "tokenizer.json"), clean_up_tokenization_spaces=False
        )

    def encode(self, chunks: np.ndarray) -> list[list[int]]:
        waves = np.around(scipy.fft.dct(chunks, axis=1, norm="ortho") * self.scale)
        texts = ("".join(map(chr, np.maximum(wave.flatten() - self.low, 0).astype(int))) for wave in waves)
        return [self.words(text)["input_ids"] for text in texts]

    def decode(self, ids: list[list[int]]) -> np.ndarray:
        chunks = []
        for each in ids:
            wave = np.array(list(map(ord, self.words.decode(each)))) + self.low
            chunks.append(scipy.fft.idct(wave.reshape(self.shape) / self.scale, axis=0, norm="ortho"))
        return np.stack(chunks)


def rate(work: Callable[[], Any], count: int, rounds: int = 5) -> float:
    """Chunks a second, of the best round."""
    work()
    best = float("inf")
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - began)
    return count / best


def main() -> None:
    """Measure both sides on the same chunks."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--chunks", type=int, default=2000)
    arguments = parser.parse_args()
    known = np.load(arguments.folder / "expected.npz")["chunks"]
    chunks = known[np.random.default_rng(0).integers(len(known), size=arguments.chunks)]
    ours, theirs = FASTTokenizer.load(arguments.folder), Reference(arguments.folder)
    ids = theirs.encode(chunks)
    assert ours.encode(chunks) == ids
    assert np.allclose(ours.decode(ids), theirs.decode(ids), atol=1e-5)
    found: dict[str, Any] = {"chunk": list(chunks.shape[1:]), "chunks": len(chunks)}
    for name, of_ours, of_theirs in (
        ("encode", lambda: ours.encode(chunks), lambda: theirs.encode(chunks)),
        ("decode", lambda: ours.decode(ids), lambda: theirs.decode(ids)),
        ("encode, one at a time", lambda: [ours.encode(c[None]) for c in chunks[:200]], None),
    ):
        count = 200 if of_theirs is None else len(chunks)
        mine = rate(of_ours, count)
        found[name] = {"smolact": round(mine)}
        if of_theirs is not None:
            other = rate(of_theirs, count)
            found[name] |= {"reference": round(other), "ratio": round(mine / other, 1)}
    sys.stdout.write(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()

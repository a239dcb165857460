"""FAST tokens, encoded and decoded: ours beside the calls that the reference processor makes, in one run.

    python benchmarks/fast_tokenizer.py [--folder=TOKENIZER] [--chunks=1000] [--rounds=9] [--output=FILE]

Needs transformers and scipy beside smolact. No chunk is shown twice, but for `encode, again`: chunks that were encoded before,
as those of a dataset are in each epoch after the first. The sides take turns. Prints the median microseconds a chunk, by the
clock and of the processor (which other work on the machine disturbs less), and the ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.fft
import tokenizers
import transformers
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


class Stopwatch:
    """Seconds by the clock and of the processor, of each kind of work and each side."""

    def __init__(self) -> None:
        self.found: dict[tuple[str, str], list[tuple[float, float]]] = {}

    def measure(self, work: str, side: str, run: Callable[[Any], Any], given: Any) -> Any:
        clock, processor = time.perf_counter(), time.process_time()
        result = run(given)
        seconds = time.perf_counter() - clock, time.process_time() - processor
        self.found.setdefault((work, side), []).append(seconds)
        return result

    def medians(self, count: int) -> dict[str, Any]:
        """Work to microseconds a chunk of both sides, and how many times as fast ours is."""
        report: dict[str, Any] = {}
        for work in dict.fromkeys(work for work, _ in self.found):
            row: dict[str, Any] = {}
            for number, kind in enumerate(("clock", "processor")):
                ours, theirs = (
                    statistics.median(times[number] for times in self.found[work, side]) * 1e6 / count
                    for side in ("smolact", "reference")
                )
                row[kind] = {
                    "smolact": round(ours, 1),
                    "reference": round(theirs, 1),
                    "ratio": round(theirs / ours, 1),
                }
            report[work] = row
        return report


def main() -> None:
    """Measure both sides on the same chunks."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--chunks", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    random = np.random.default_rng(0)
    known = np.load(arguments.folder / "expected.npz")["chunks"]

    def fresh() -> np.ndarray:
        """Chunks between two known ones."""
        first, second = random.integers(len(known), size=(2, arguments.chunks))
        share = random.random((arguments.chunks, 1, 1))
        return known[first] * share + known[second] * (1 - share)

    ours, theirs = FASTTokenizer.load(arguments.folder), Reference(arguments.folder)
    sides = {"smolact": ours, "reference": theirs}
    watch = Stopwatch()
    for turn in range(arguments.rounds):
        chunks = fresh()
        order = list(sides) if turn % 2 else list(reversed(sides))
        ids = {side: watch.measure("encode", side, sides[side].encode, chunks) for side in order}
        assert ids["smolact"] == ids["reference"]
        for side in order:
            watch.measure("encode, again", side, sides[side].encode, chunks)
        decoded = {side: watch.measure("decode", side, sides[side].decode, ids[side]) for side in order}
        assert np.allclose(decoded["smolact"], decoded["reference"], atol=1e-5)
    report = {
        "tokenizer": arguments.folder.name,
        "chunk": list(known.shape[1:]),
        "tokens a chunk": round(sum(map(len, ids["smolact"])) / arguments.chunks, 1),
        "unit": "microseconds a chunk, median",
        "rounds": arguments.rounds,
        "chunks a round": arguments.chunks,
        "processors": os.cpu_count(),
        "load": [round(load, 1) for load in os.getloadavg()],
        "versions": {"tokenizers": tokenizers.__version__, "transformers": transformers.__version__},
        **watch.medians(arguments.chunks),
    }
    text = json.dumps(report, indent=2) + "\n"
    sys.stdout.write(text)
    if arguments.output:
        arguments.output.write_text(text)


if __name__ == "__main__":
    main()

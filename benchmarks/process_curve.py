"""What 2, 4, 8 and 16 cores would give a small policy's training: counted, not measured, where there are fewer.

    python benchmarks/process_curve.py DATASET --output benchmarks/results/process_curve.json

One process computes all pieces of each step, as N cores would cut it. What each piece takes of the processor, and what the steps take
besides (adding up, optimizer, everything that one process does alone), is measured; then the pieces are dealt out to N processes as
they would take them, each as soon as it is free. A step waits for the last one. Left out: what cores take from each other (memory,
clock rate), so this is the most that N cores can give.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from smolact.cli.demo import DemoConfig, training_settings
from smolact.training import adaptive_workers
from smolact.training.gradients import GradientPart, GradientWorker
from smolact.training.train import train
from smolact.training.worker_pool import WorkerPool

BATCH = 32


def main() -> None:
    """Count for each number of cores, and write the curve."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--cores", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    curve = {number: count(arguments.dataset, number) for number in arguments.cores}
    text = json.dumps({"batch": BATCH, "cores": curve}, indent=2) + "\n"
    if arguments.output is not None:
        arguments.output.write_text(text)
    sys.stdout.write(text)


def count(dataset: Path, cores: int) -> dict[str, float]:
    """The rate of `cores` cores, and of what it consists."""
    pieces: list[list[float]] = []
    steps: list[float] = []
    compute, gradients = GradientWorker.gradients, WorkerPool.gradients

    def computed(self: GradientWorker, places: Sequence[int], into: Any) -> GradientPart:
        piece = compute(self, places, into)
        pieces[-1].append(piece.busy)
        return piece

    def made(self: WorkerPool, first: int) -> Any:
        pieces.append([])
        self.number = min(cores, self.most)
        steps.append(time.thread_time())
        return gradients(self, first)

    GradientWorker.gradients, WorkerPool.gradients = computed, made  # type: ignore[method-assign]
    adaptive_workers.cores, worth = lambda: cores, adaptive_workers.WORTH_S
    adaptive_workers.WORTH_S = float("inf")  # nobody is started
    try:
        with tempfile.TemporaryDirectory() as scratch:
            settings = training_settings(DemoConfig(), dataset, Path(scratch) / "run", minutes=0.4)
            settings.save_checkpoint = settings.report = False
            train(settings)
    finally:
        GradientWorker.gradients, WorkerPool.gradients = compute, gradients  # type: ignore[method-assign]
        adaptive_workers.WORTH_S = worth
    whole = [after - before for before, after in itertools.pairwise(steps)][5:]
    alone = median(step - sum(parts) for step, parts in zip(whole, pieces[5:], strict=False))
    waits = median(dealt(parts, cores) for parts in pieces[5:])
    return {
        "pieces": len(pieces[0]),
        "milliseconds_waited_for_pieces": round(1e3 * waits, 1),
        "milliseconds_alone": round(1e3 * alone, 1),
        "samples_per_second": round(BATCH / (waits + alone)),
    }


def dealt(pieces: Sequence[float], cores: int) -> float:
    """When the last piece is done, if each goes to whoever is free first."""
    free = [0.0] * cores
    for piece in pieces:
        heapq.heapreplace(free, free[0] + piece)
    return max(free)


if __name__ == "__main__":
    main()

"""Random samples from two cameras of 480×640 in AV1, as a training asks for them: samples a second.

    python benchmarks/loading.py [--samples=400] [--lerobot] [--output=RESULTS.json]

Rows: frames decoded at random (what the first epoch costs without a cache), the pass that fills the cache, samples out of the
cache. `--lerobot` loads the same frames with LeRobot's own dataset and decoder in the same run; LeRobot must be installed. Both load
in two processes, batches of eight, through PyTorch's DataLoader. The samples' difference is printed: it must be 0.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from smolact.datasets.collate import collate
from smolact.datasets.frame_cache import FrameCache
from smolact.datasets.reader import LeRobotDataset
from smolact.datasets.writer import DatasetWriter

FPS, HEIGHT, WIDTH, CHUNK, BATCH, WORKERS = 30, 480, 640, 50, 8, 2
CAMERAS = ("observation.images.front", "observation.images.wrist")
OFFSETS = [index / FPS for index in range(CHUNK)]


def make(root: Path, episodes: int, length: int) -> Path:
    """A dataset whose pictures drift and are noisy, as a camera's are."""
    vector = {"dtype": "float32", "shape": (6,), "names": [f"joint_{n}" for n in range(6)]}
    features = {name: {"dtype": "video", "shape": (HEIGHT, WIDTH, 3)} for name in CAMERAS}
    with DatasetWriter.create(
        root, fps=FPS, features={**features, "observation.state": vector, "action": vector}
    ) as writer:
        for episode in range(episodes):
            random = np.random.default_rng(episode)
            coarse = random.integers(0, 256, (HEIGHT // 16, 2 * WIDTH // 16, 3)).astype(np.float32)
            wide = np.kron(coarse, np.ones((16, 16, 1), np.float32))
            noise = random.normal(0, 3, (4, HEIGHT, WIDTH, 3))
            for number in range(length):
                shown = wide[:, 4 * number % WIDTH :][:, :WIDTH] + noise[number % 4]
                picture = shown.clip(0, 255).astype(np.uint8)
                state = np.full(6, number, np.float32)
                writer.add_frame(
                    {**dict.fromkeys(CAMERAS, picture), "observation.state": state, "action": state},
                    task="move",
                )
            writer.save_episode()
    return root


def rate(dataset: Any, order: Sequence[int], join: Any = None, workers: int = WORKERS) -> float:
    """Samples a second, from the second batch on: starting processes is not what is measured."""
    context = {"multiprocessing_context": "spawn"} if workers else {}
    loader = DataLoader(dataset, BATCH, sampler=list(order), num_workers=workers, collate_fn=join, **context)
    batches = iter(loader)
    next(batches)
    began, count = time.perf_counter(), 0
    for batch in batches:
        count += len(batch["action"])
    return count / (time.perf_counter() - began)


def ours(root: Path) -> LeRobotDataset:
    """The dataset as training opens it."""
    return LeRobotDataset(root, delta_timestamps={"action": OFFSETS}, return_uint8=True)


def filling(dataset: LeRobotDataset) -> float:
    """Frames of both cameras a second, kept in order."""

    def load(runs: Any) -> Iterable[Any]:
        return iter(DataLoader(runs, batch_size=None, collate_fn=as_it_is, num_workers=WORKERS))

    began = time.perf_counter()
    kept = FrameCache(dataset.meta).keep(dataset, load=load)
    return kept / (time.perf_counter() - began)


def as_it_is(item: Any) -> Any:
    """What a worker read."""
    return item


def difference(first: Any, second: Any, order: Sequence[int]) -> int:
    """The largest between two datasets' pictures, of 255."""
    return max(
        int((first[i][key].int() - second[i][key].int()).abs().max()) for i in order for key in CAMERAS
    )


def main() -> None:
    """Measure, alternating, and print medians."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--samples", type=int, default=400)
    parser.add_argument("--episodes", type=int, default=6)
    parser.add_argument("--length", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--lerobot", action="store_true")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = make(Path(scratch) / "set", arguments.episodes, arguments.length)
        plain, kept = ours(root), ours(root)
        filled = [filling(kept)]
        for _ in range(arguments.rounds - 1):
            shutil.rmtree(Path(scratch) / "set.cache")
            filled.append(filling(ours(root)))
        rates: dict[str, list[float]] = {
            "at random, decoded": [],
            "at random, kept": [],
            "at random, kept, no workers": [],
        }
        theirs = None
        if arguments.lerobot:
            from lerobot.datasets.lerobot_dataset import LeRobotDataset as Theirs

            theirs = Theirs("local/set", root=root, delta_timestamps={"action": OFFSETS})
            rates["LeRobot"] = []
        for number in range(arguments.rounds):
            order = np.random.default_rng(number).permutation(len(plain))[: arguments.samples].tolist()
            rates["at random, decoded"].append(rate(plain, order, collate))
            rates["at random, kept"].append(rate(kept, order * 4, collate))
            rates["at random, kept, no workers"].append(rate(kept, order * 4, collate, workers=0))
            if theirs is not None:
                rates["LeRobot"].append(rate(theirs, order[: max(64, arguments.samples // 4)]))
        found: dict[str, Any] = {
            "command": "python benchmarks/loading.py" + (" --lerobot" if arguments.lerobot else ""),
            "versions": {"torch": torch.__version__},
            "cameras": f"{len(CAMERAS)} of {HEIGHT}×{WIDTH}, AV1",
            "difference, of 255": difference(plain, kept, order[:20]),
            "samples a second": {name: spread(values) for name, values in rates.items()},
            "kept in order, a second": spread(filled),
        }
        if theirs is not None:
            base = float(np.median(rates["LeRobot"]))
            found["times LeRobot"] = {
                name: round(float(np.median(values)) / base, 2) for name, values in rates.items()
            } | {"kept in order": round(float(np.median(filled)) / base, 2)}
    text = json.dumps(found, indent=2, ensure_ascii=False) + "\n"
    if arguments.output:
        arguments.output.write_text(text)
    sys.stdout.write(text)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least, most."""
    return {
        "median": round(float(np.median(values)), 1),
        "from": round(min(values), 1),
        "to": round(max(values), 1),
    }


if __name__ == "__main__":
    main()

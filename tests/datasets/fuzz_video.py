"""Video files that are damaged at random, decoded by a child, since a decoder that crashes takes its process along."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from smolact.datasets.remux import Cut, Joiner, PacketIndex
from smolact.datasets.video import VideoReader, VideoWriter
from smolact.errors import VideoError
from tests.datasets.fuzz import change_bytes, change_piece, cut_off
from tests.datasets.test_video import picture, write_with_b_frames
from tests.recording.nursery import ENVIRONMENT, TOP

FRAMES = 6
MAX_MEMORY = 4 * 2**30


def make_seeds(folder: Path) -> list[Path]:
    """A small file of each codec that we write, and one with B-frames."""
    paths = [folder / "h264.mp4", folder / "libsvtav1.mp4"]
    for path in paths:
        with VideoWriter(path, 10, 48, 32, codec=path.stem) as writer:
            for number in range(FRAMES):
                writer.write(picture(number))
    return [*paths, write_with_b_frames(folder / "b_frames.mp4")]


def run_case(seed: int, seeds: list[Path], folder: Path) -> tuple[bool, float]:
    """Damage a file, decode and copy all of it: whether that was a `VideoError`, and how many seconds it took."""
    rng = np.random.default_rng(seed)
    original = seeds[seed % len(seeds)]
    path, output = folder / "damaged.mp4", folder / "copied.mp4"
    path.write_bytes(original.read_bytes())
    (cut_off, change_bytes, change_piece)[rng.integers(3)](path, rng)
    begun, named = time.process_time(), False
    try:
        reader = VideoReader(path)
        try:
            for start in range(0, min(len(reader), 64), 8):
                pictures = reader.frames(np.arange(start, min(start + 8, len(reader))))
                assert pictures.dtype == np.uint8
        finally:
            reader.close()
    except VideoError as error:
        named = bool(str(error))
    joiner = Joiner(output, 10)
    try:
        index = PacketIndex(path)
        span = index.packets(Cut(path, 0, min(FRAMES, len(index.keys))))
        if span is not None:
            joiner.add(index, *span)
    except VideoError as error:
        named = bool(str(error))
    finally:
        joiner.close()
    return named, time.process_time() - begun


def run_in_child(first: int, last: int, folder: Path) -> tuple[int, int, float]:
    """Cases `first` to `last`: how many there were, how many were named errors, and the longest one's seconds.

    Raises:
        AssertionError: a case failed otherwise, took all memory, or crashed the child; its number is told.
    """
    command = [sys.executable, "-m", "tests.datasets.fuzz_video", str(first), str(last), str(folder)]
    child = subprocess.run(command, cwd=TOP, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    told = child.stdout.splitlines()
    assert child.returncode == 0, (
        f"case {told[-1] if told else first}: {child.returncode}, {child.stderr[-2000:]}"
    )
    named, longest = told[-1].split()
    return last - first, int(named), float(longest)


def main(first: int, last: int, folder: Path) -> None:
    """Run the cases, each told before it runs."""
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
    seeds, named, longest = make_seeds(folder), 0, 0.0
    for seed in range(first, last):
        print(seed, flush=True)
        failed, seconds = run_case(seed, seeds, folder)
        named, longest = named + failed, max(longest, seconds)
    print(named, f"{longest:.3f}")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))

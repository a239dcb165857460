"""How fast the demo's policy trains: threads against processes, on a machine that is quiet or busy.

    python benchmarks/small_policies.py --output benchmarks/results/small_policies_cpu_2_cores.json
    python benchmarks/small_policies.py --busy 2 --output …          # beside two processes that only compute

Ways take turns, round after round, each in a process of its own for some seconds; a figure is the median of its rounds. What starting costs is
left out: a rate is that of the second half of a turn.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

FROZEN = ("--policy.train_expert_only=true",)
WAYS: dict[str, tuple[str, ...]] = {
    "2 threads": ("--cpu_processes=1",),
    "1 thread": ("--cpu_processes=1",),
    "2 processes": ("--cpu_processes=2",),
    "4 processes": ("--cpu_processes=4",),
    "as measured": (),
    "2 threads, frozen": ("--cpu_processes=1", *FROZEN),
    "2 processes, frozen": ("--cpu_processes=2", *FROZEN),
    "2 processes, frozen, kept tokens": ("--cpu_processes=2", *FROZEN, "--cache.features=true"),
}
FLAGS = (
    *("--policy.type=smolvla", "--policy.vlm_model_name=tiny", "--policy.train_expert_only=false"),
    *("--policy.freeze_vision_encoder=true", "--noise_draws=2", "--policy.relative_step=0.12"),
    *("--policy.resize_imgs_with_padding=[64,64]", "--policy.chunk_size=16", "--policy.n_action_steps=4"),
    *("--policy.max_state_dim=8", "--policy.max_action_dim=8", "--batch_size=32", "--num_workers=0"),
    *("--save_checkpoint=false", "--report=false", "--log_freq=5"),
)


def main() -> None:
    """Run all ways in turns, and write what they gave."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=30.0, help="of a turn")
    parser.add_argument("--busy", type=int, default=0, help="processes that compute beside it")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    rates: dict[str, list[float]] = {way: [] for way in arguments.ways}
    with tempfile.TemporaryDirectory() as scratch, beside(arguments.busy):
        dataset = Path(scratch) / "dataset"
        subprocess.run(
            [
                sys.executable,
                "-m",
                "smolact",
                "dataset",
                "make-demos",
                "--env.type=tabletop",
                "--episodes=100",
                "--video=false",
                f"--output={dataset}",
            ],
            check=True,
        )
        for number in range(arguments.rounds):
            for way, measured in rates.items():
                measured.append(turn(way, dataset, Path(scratch) / f"{number} {way}", arguments.seconds))
                sys.stderr.write(f"round {number + 1}: {way}: {measured[-1]:.0f} samples/s\n")
    found = {
        "command": " ".join(["python", "benchmarks/small_policies.py", *sys.argv[1:]]),
        "cores": os.cpu_count(),
        "processor": processor(),
        "busy": arguments.busy,
        "samples_per_second": {way: round(median(measured), 1) for way, measured in rates.items()},
        "rounds": {way: [round(rate, 1) for rate in measured] for way, measured in rates.items()},
    }
    text = json.dumps(found, indent=2) + "\n"
    if arguments.output is not None:
        arguments.output.write_text(text)
    sys.stdout.write(text)


def turn(way: str, dataset: Path, run: Path, seconds: float) -> float:
    """Samples a second of one way in the second half of its time."""
    command = [sys.executable, "-m", "smolact", "train", f"--dataset.root={dataset}", *FLAGS, *WAYS[way]]
    command += [f"--train_minutes={(seconds + 8) / 60}", f"--output_dir={run}"]
    threads = way[0] if "thread" in way else "1"
    environment = {**os.environ, "OMP_NUM_THREADS": threads}
    subprocess.run(command, check=True, env=environment, stderr=subprocess.DEVNULL)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    first, last = lines[len(lines) // 2], lines[-1]
    return 32 * (last["step"] - first["step"]) / (last["seconds"] - first["seconds"])


@contextlib.contextmanager
def beside(number: int) -> Iterator[None]:
    """So many processes compute while the block runs."""
    others = [multiprocessing.Process(target=compute, daemon=True) for _ in range(number)]
    for other in others:
        other.start()
    try:
        yield
    finally:
        for other in others:
            other.kill()


def compute() -> None:
    """Keep a core busy."""
    number = 1
    while True:
        number = (number * 1103515245 + 12345) % 2**31


def processor() -> str:
    """Its name and what it can do."""
    with contextlib.suppress(OSError):
        text = Path("/proc/cpuinfo").read_text()
        name: Any = next(
            (line.partition(": ")[2] for line in text.splitlines() if line.startswith("model name")), ""
        )
        known = [flag for flag in ("avx2", "avx512f", "avx512_vnni", "amx_int8") if f" {flag}" in text]
        return f"{name} ({', '.join(known)})"
    return ""


if __name__ == "__main__":
    main()

"""`smolact demo` over several seeds: what can be quoted of it, with its spread.

    python benchmarks/demo_seeds.py --seeds 0 1 2 --output benchmarks/results/demo_cpu_2_cores.json

Each takes the demo's ten minutes. Leave the machine alone meanwhile: the demo trains as far as its time allows.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import fmean
from typing import Any


def main() -> None:
    """Run the seeds, and write their figures and means."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--keep", type=Path, help="a folder for the demos themselves")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.keep or Path(scratch)
        runs = {str(seed): run(seed, arguments.minutes, folder / f"seed_{seed}") for seed in arguments.seeds}
    found = {
        "command": f"smolact demo --minutes={arguments.minutes:g} --seed=N",
        "cores": os.cpu_count(),
        "mean": {
            name: round(fmean(value(metrics, name) for metrics in runs.values()), 3) for name in FIGURES
        },
        "seeds": runs,
    }
    arguments.output.write_text(json.dumps(found, indent=2) + "\n")
    sys.stdout.write(json.dumps(found["mean"], indent=2) + "\n")


FIGURES = (
    *("success_rate", "per_task.push.success_rate", "per_task.reach.success_rate"),
    *("language_control.asked_goal_reached", "language_control.old_goal_reached"),
    *("unseen_phrasings.success_rate", "unseen_combinations.success_rate"),
    *("empty_instruction.success_rate", "nonsense_instruction.success_rate"),
    *("train_seconds", "samples_per_second", "total_seconds", "evaluation_seconds"),
)


def run(seed: int, minutes: float, folder: Path) -> dict[str, Any]:
    """The figures of one demo."""
    command = [sys.executable, "-m", "smolact", "demo"]
    subprocess.run([*command, f"--minutes={minutes:g}", f"--seed={seed}", f"--output={folder}"], check=True)
    metrics: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return metrics


def value(metrics: dict[str, Any], name: str) -> float:
    """A figure by its dotted name."""
    found: Any = metrics
    for part in name.split("."):
        found = found[part]
    return float(found)


if __name__ == "__main__":
    main()

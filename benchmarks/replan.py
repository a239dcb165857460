"""From observation to chunk: LeRobot, smolact's policy and its engine, in one process, on the same weights, pictures and noise.

Run with the interpreter of an environment that holds LeRobot 0.6.1 (see compare_lerobot.py), or with any other and
`--without-lerobot`. `scripts/bench` does it:

    python benchmarks/replan.py --repeats=5 --output=benchmarks/results/replan_MACHINE.json

SmolVLA-450M shapes, random weights, two cameras of 480×640, 20 tokens, chunk 50, 10 steps. The sides take turns. Beside the
seconds on the clock stand those of the processor, which other work on the machine lengthens less.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from compare_lerobot import make_batch, make_both, processor_name, relative, settings

from smolact.policies.common.precision import quickest_dtype
from smolact.policies.smolvla.configuration_smolvla import SmolVLAConfig
from smolact.policies.smolvla.modeling_smolvla import SmolVLAPolicy

Side = Callable[[], Tensor]


def make_sides(arguments: argparse.Namespace) -> dict[str, Side]:
    """Name to what predicts; "policy" is what the others are compared with."""
    sides: dict[str, Side] = {}
    if arguments.without_lerobot:
        torch.manual_seed(0)
        policy = SmolVLAPolicy(SmolVLAConfig.from_dict(settings("smolvlm2-500m", 480, 640)))
    else:
        theirs, policy = make_both("smolvlm2-500m", 480, 640)
        theirs.eval()
        sides["LeRobot"] = lambda: theirs.predict_action_chunk(dict(batch), noise=noise)
        if quickest_dtype(torch.device("cpu")) == torch.bfloat16:

            def autocast() -> Tensor:
                with torch.autocast("cpu", torch.bfloat16):
                    return theirs.predict_action_chunk(dict(batch), noise=noise)

            sides["LeRobot, bfloat16 autocast"] = autocast
    policy.eval()
    batch = {key: value for key, value in make_batch(1, 50, 480, 640, 20, 0).items() if key != "action"}
    noise = torch.randn(1, 50, 32, generator=torch.Generator().manual_seed(1))
    sides["policy"] = lambda: policy.predict_action_chunk(batch, noise)
    engine = policy.build_engine(dtype=torch.float32, compile=arguments.compile)
    sides["engine, float32"] = lambda: engine.predict_action_chunk(batch, noise)
    if quickest_dtype(torch.device("cpu")) == torch.bfloat16:
        rounded = policy.build_engine(dtype=torch.bfloat16)
        sides["engine, bfloat16"] = lambda: rounded.predict_action_chunk(batch, noise)
    bytes_ = policy.build_engine(int8=True)
    sides["engine, int8"] = lambda: bytes_.predict_action_chunk(batch, noise)
    for steps, solver in ((5, "euler"), (2, "midpoint"), (1, "euler")) if arguments.steps else ():
        few = policy.build_engine(dtype=torch.float32, num_steps=steps, solver=solver)
        sides[f"engine, float32, {steps} × {solver}"] = lambda few=few: few.predict_action_chunk(batch, noise)
    return sides


def measure(sides: dict[str, Side], repeats: int) -> dict[str, dict[str, Any]]:
    answers = {name: side() for name, side in sides.items()}  # which warms up, too
    clock: dict[str, list[float]] = {name: [] for name in sides}
    processor: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, side in sides.items():
            began, busy = time.perf_counter(), time.process_time()
            side()
            clock[name].append(time.perf_counter() - began)
            processor[name].append(time.process_time() - busy)
    base = "LeRobot" if "LeRobot" in sides else "policy"
    return {
        name: {
            "median_seconds": statistics.median(clock[name]),
            "spread": [min(clock[name]), max(clock[name])],
            "median_processor_seconds": statistics.median(processor[name]),
            f"times_{base}": statistics.median(clock[base]) / statistics.median(clock[name]),
            f"times_{base}_by_processor": statistics.median(processor[base])
            / statistics.median(processor[name]),
            "difference_to_policy": relative(answers[name], answers["policy"]),
        }
        for name in sides
    }


def main() -> None:
    warnings.filterwarnings("ignore")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--steps", action="store_true", help="also fewer steps and other solvers")
    parser.add_argument("--compile", action="store_true", help="torch.compile the float32 engine")
    parser.add_argument("--without-lerobot", action="store_true")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    load = os.getloadavg()[0]
    figures = measure(make_sides(arguments), arguments.repeats)
    for name, row in figures.items():
        ratio, by_processor = (value for key, value in row.items() if key.startswith("times_"))
        print(
            f"{name:>28}: {row['median_seconds']:7.2f} s ({ratio:.2f}×), processor {row['median_processor_seconds']:7.2f} s "
            f"({by_processor:.2f}×), difference {row['difference_to_policy']:.1e}"
        )
    if arguments.output:
        versions = {"python": platform.python_version(), "torch": torch.__version__}
        if not arguments.without_lerobot:
            import lerobot

            versions["lerobot"] = lerobot.__version__
        record = {
            "command": "python benchmarks/replan.py " + " ".join(sys.argv[1:]),
            "machine": f"{os.cpu_count()} cores, {processor_name()}, {torch.backends.cpu.get_cpu_capability()}",
            "threads": arguments.threads,
            "load_before": round(load, 1),
            "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "versions": versions,
            "figures": figures,
        }
        arguments.output.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""A training step of the expert: LeRobot, smolact, and smolact with vision tokens that were kept (`--cache.features=true`).

    python benchmarks/training_step.py [--repeats=3] [--output=RESULTS.json]

With the interpreter of an environment that holds LeRobot 0.6.1 (see compare_lerobot.py). SmolVLA-450M shapes, random weights, two
cameras of 480×640, 20 tokens, chunk 50, 4 samples; forward, backward, AdamW. The sides take turns, medians count. Beside the times
stand how far losses and gradients are from LeRobot's, with the same noise and times.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from compare_lerobot import make_batch, make_both, processor_name, relative
from torch import Tensor, nn

from smolact.types import VISION_TOKENS, is_image_key

SAMPLES, CHUNK = 4, 50


def main() -> None:
    """Measure, and print a JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    theirs, ours = make_both("smolvlm2-500m", 480, 640)
    batch = make_batch(SAMPLES, CHUNK, 480, 640, 20, 1)
    with torch.no_grad():
        kept = {
            key + VISION_TOKENS if is_image_key(key) else key: ours.encode_images(value).bfloat16()
            if is_image_key(key)
            else value
            for key, value in batch.items()
        }
    noise, times = torch.randn(SAMPLES, CHUNK, 32), torch.tensor([0.2, 0.4, 0.6, 0.8])
    sides = {"LeRobot": (theirs, batch), "smolact": (ours, batch), "smolact, kept tokens": (ours, kept)}
    optimizers = {
        id(policy): torch.optim.AdamW(
            [p for p in policy.parameters() if p.requires_grad], lr=1e-9, fused=True
        )
        for policy in (theirs, ours)
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    processor: dict[str, list[float]] = {name: [] for name in sides}
    found: dict[str, tuple[Tensor, dict[str, Tensor]]] = {}
    for _ in range(arguments.repeats + 1):  # the first is to warm up
        for name, (policy, data) in sides.items():
            began, busy = time.perf_counter(), time.process_time()
            loss, _ = policy.forward(dict(data), noise=noise, time=times)
            loss.backward()
            if name not in found:
                found[name] = loss.detach(), gradients(policy)
            optimizers[id(policy)].step()
            optimizers[id(policy)].zero_grad(set_to_none=True)
            seconds[name].append(time.perf_counter() - began)
            processor[name].append(time.process_time() - busy)
            sys.stderr.write(f"{name}: {seconds[name][-1]:.2f} s\n")
    rows: dict[str, Any] = {}
    base = statistics.median(seconds["LeRobot"][1:])
    for name, (loss, own) in found.items():
        timed = seconds[name][1:]
        rows[name] = {
            "seconds a step": round(statistics.median(timed), 2),
            "spread": [round(min(timed), 2), round(max(timed), 2)],
            "samples a second": round(SAMPLES / statistics.median(timed), 2),
            "times LeRobot": round(base / statistics.median(timed), 2),
            "seconds of the processor": round(statistics.median(processor[name][1:]), 2),
            "times LeRobot by processor": round(
                statistics.median(processor["LeRobot"][1:]) / statistics.median(processor[name][1:]), 2
            ),
            "loss differs by": relative(loss, found["LeRobot"][0]),
            "gradients differ by": worst(own, found["LeRobot"][1]),
        }
    result = {
        "command": "python benchmarks/training_step.py",
        "machine": f"{os.cpu_count()} cores, {processor_name()}",
        "torch": torch.__version__,
        "load before": round(load, 1),
        "samples": SAMPLES,
        "sides": rows,
    }
    text = json.dumps(result, indent=2, ensure_ascii=False) + "\n"
    if arguments.output:
        arguments.output.write_text(text)
    sys.stdout.write(text)


def gradients(policy: nn.Module) -> dict[str, Tensor]:
    """Of what trains, by name."""
    return {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}


def worst(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The norm of the difference of all gradients together, over the norm of what was expected."""
    both = [(found[name], gradient) for name, gradient in expected.items() if name in found]
    off = sum(float((a - b).double().square().sum()) for a, b in both)
    size = sum(float(b.double().square().sum()) for _, b in both)
    return float((off / size) ** 0.5)


if __name__ == "__main__":
    main()

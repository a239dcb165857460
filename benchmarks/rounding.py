"""What weights of 8 bits cost: how far chunks are from float32's, and success in the same episodes.

    python benchmarks/rounding.py CHECKPOINT… [--episodes=100] [--ways float8] [--output=RESULTS.json]

Checkpoints of `smolact demo` will do, such as those of several seeds; their episodes are counted together. Chunks are compared at
moments of real episodes, from the same noise: the norm of the difference over the norm of float32's. On a CPU float8 gives the
numbers that a GPU's kernel gives, but for the order of sums.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from measuring import processor_name, relative
from steps_and_success import WAVE, merged, observed

from smolact.envs.factory import make_env
from smolact.evaluation.metrics import Comparison, EpisodeResult, SuccessRate
from smolact.evaluation.rollout import evaluate, plan_episodes
from smolact.policies.factory import load_policy
from smolact.runtime.local import LocalPolicy

WAYS: dict[str, dict[str, Any]] = {
    "float32": {"dtype": torch.float32},
    "int8": {"int8": True},
    "float8": {"dtype": torch.float32, "fp8": True},
}


def main() -> None:
    """Measure, and print a JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("policies", nargs="+")
    parser.add_argument("--episodes", type=int, default=100, help="of each; 0: compare chunks alone")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS)[1:], default=list(WAYS)[1:])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    ways = {way: settings for way, settings in WAYS.items() if way in ("float32", *arguments.ways)}
    played: dict[str, list[EpisodeResult]] = {way: [] for way in ways}
    differences: dict[str, list[float]] = {way: [] for way in ways}
    for policy in arguments.policies:
        loaded = {way: load_policy(policy, device="cpu", engine=settings) for way, settings in ways.items()}
        moments = observed(loaded["float32"], plan_episodes(WAVE, arguments.seed + 1))
        chunks = {way: predicted(one.policy, moments) for way, one in loaded.items()}
        for way, found in chunks.items():
            differences[way].append(relative(found, chunks["float32"]))
        sys.stderr.write(
            f"{policy}: { ({way: round(found[-1], 5) for way, found in differences.items()}) }\n"
        )
        for way, one in loaded.items() if arguments.episodes else ():
            with make_env("tabletop", WAVE, render=None) as envs:
                result = evaluate(LocalPolicy(*one), envs, n_episodes=arguments.episodes, seed=arguments.seed)
            played[way] += result.results
            sys.stderr.write(f"{policy}, {way}: {result.success}\n")
    rows: dict[str, Any] = {}
    for way in ways:
        rows[way] = {"chunk differs by": statistics.fmean(differences[way]), "of each": differences[way]}
        if arguments.episodes:
            compared = Comparison.of(merged(played["float32"]), merged(played[way]))
            rows[way] |= SuccessRate.of(result.success for result in played[way]).to_dict()
            rows[way] |= {"against float32": round(compared.difference, 4), "p": round(compared.p_value, 4)}
    result = {
        "command": f"python benchmarks/rounding.py CHECKPOINT… --episodes={arguments.episodes} --ways {' '.join(arguments.ways)}",
        "machine": f"{os.cpu_count()} cores, {processor_name()}; one thread",
        "torch": torch.__version__,
        "policies": len(arguments.policies),
        "moments of each": len(moments),
        "ways": rows,
    }
    text = json.dumps(result, indent=2, ensure_ascii=False) + "\n"
    if arguments.output:
        arguments.output.write_text(text)
    sys.stdout.write(text)


def predicted(engine: Any, moments: list[dict[str, Any]]) -> torch.Tensor:
    """Chunks (moments, C, A), each from its own noise."""
    noises = (
        torch.randn(1, *engine.noise_shape, generator=torch.Generator().manual_seed(number))
        for number in range(len(moments))
    )
    return torch.cat(
        [engine.predict_action_chunk(batch, noise) for batch, noise in zip(moments, noises, strict=True)]
    )


if __name__ == "__main__":
    main()

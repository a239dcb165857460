"""What fewer denoising steps cost in success: trained policies, the same episodes, 1, 2, 4 and 10 Euler steps and midpoint's 2 and 5.

    python benchmarks/steps_and_success.py CHECKPOINT… [--episodes=200] [--output=RESULTS.json]

Checkpoints of `smolact demo` will do, such as those of several seeds; their episodes are counted together. Beside the success rates
stand Wilson's intervals, McNemar's test against ten Euler steps, how far chunks are from theirs, and the seconds that a replan of one
observation takes (the first checkpoint's; the ways take turns).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from measuring import processor_name, relative

from smolact.envs.factory import make_env
from smolact.evaluation.metrics import Comparison, EpisodeResult, EvaluationResult, SuccessRate
from smolact.evaluation.rollout import EpisodePlan, evaluate, plan_episodes, play
from smolact.policies.factory import LoadedEngine, load_policy
from smolact.runtime.local import LocalPolicy
from smolact.runtime.observation import to_batch
from smolact.types import TASK

WAYS = ((10, "euler"), (4, "euler"), (2, "euler"), (1, "euler"), (5, "midpoint"), (2, "midpoint"))
MOMENTS, WAVE = 40, 16


def main() -> None:
    """Measure, and print a JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("policies", nargs="+")
    parser.add_argument("--episodes", type=int, default=200, help="of each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    played: dict[str, list[EpisodeResult]] = {name(way): [] for way in WAYS}
    differences: dict[str, list[float]] = {name(way): [] for way in WAYS}
    seconds: dict[str, float] = {}
    for policy in arguments.policies:
        loaded = load_policy(policy, device="cpu", engine={"dtype": torch.float32})
        engine: Any = loaded.policy
        moments = observed(loaded, plan_episodes(WAVE, arguments.seed + 1))
        timed, chunks = replans(engine, moments)
        seconds = seconds or timed
        for way, own in chunks.items():
            differences[way].append(relative(own, chunks[name(WAYS[0])]))
        with make_env("tabletop", WAVE, render=None) as envs:
            for way in WAYS:
                engine.use_steps(*way)
                result = evaluate(
                    LocalPolicy(*loaded), envs, n_episodes=arguments.episodes, seed=arguments.seed
                )
                played[name(way)] += result.results
                sys.stderr.write(f"{policy}, {name(way)}: {result.success}\n")
    rows: dict[str, Any] = {}
    for steps, solver in WAYS:
        way = name((steps, solver))
        compared = Comparison.of(merged(played[name(WAYS[0])]), merged(played[way]))
        rows[way] = {
            "evaluations": steps * (1 if solver == "euler" else 2),
            **SuccessRate.of(result.success for result in played[way]).to_dict(),
            "push": SuccessRate.of(r.success for r in played[way] if r.task_kind == "push").to_dict(),
            f"against {name(WAYS[0])}": round(compared.difference, 3),
            "p": round(compared.p_value, 4),
            "chunk differs by": statistics.fmean(differences[way]),
            "median replan seconds": round(seconds[way], 4),
        }
    result = {
        "command": f"python benchmarks/steps_and_success.py CHECKPOINT… --episodes={arguments.episodes}",
        "machine": f"{os.cpu_count()} cores, {processor_name()}",
        "threads": arguments.threads,
        "torch": torch.__version__,
        "policies": len(arguments.policies),
        "executed of a chunk": f"{engine.config.n_action_steps} of {engine.config.chunk_size}",
        "ways": rows,
    }
    text = json.dumps(result, indent=2, ensure_ascii=False) + "\n"
    if arguments.output:
        arguments.output.write_text(text)
    sys.stdout.write(text)


def name(way: tuple[int, str]) -> str:
    """Of a way to integrate."""
    return f"{way[0]} × {way[1]}"


def merged(results: list[EpisodeResult]) -> EvaluationResult:
    """Episodes of several policies as those of one evaluation, numbered through."""
    numbered = tuple(replace(result, index=index) for index, result in enumerate(results))
    return EvaluationResult(0, None, None, 0.0, numbered)


def observed(loaded: LoadedEngine, plans: list[EpisodePlan]) -> list[dict[str, Any]]:
    """Single observations out of real episodes, preprocessed."""
    found: list[dict[str, Any]] = []

    def replanned(plans: Any, step: int, requests: Any) -> None:
        if len(found) < MOMENTS:
            one = requests[step % len(requests)]
            batch = loaded.preprocess({**to_batch([one]), TASK: [one.task]})
            found.append({key: value for key, value in batch.items() if isinstance(value, torch.Tensor)})

    with make_env("tabletop", WAVE, render=None) as envs:
        list(play(LocalPolicy(*loaded), envs, plans, on_replan=replanned))
    return found


def replans(engine: Any, moments: list[dict[str, Any]]) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Of each way the median seconds of a replan, and its chunks (moments, C, A); all from the same noises."""
    seconds: dict[str, list[float]] = {name(way): [] for way in WAYS}
    chunks: dict[str, list[torch.Tensor]] = {name(way): [] for way in WAYS}
    for number, batch in enumerate(moments):
        noise = torch.randn(1, *engine.noise_shape, generator=torch.Generator().manual_seed(number))
        for way in WAYS:
            engine.use_steps(*way)
            engine.predict_action_chunk(batch, noise)  # makes the buffers
            began = time.perf_counter()
            chunks[name(way)].append(engine.predict_action_chunk(batch, noise))
            seconds[name(way)].append(time.perf_counter() - began)
    return (
        {way: statistics.median(taken) for way, taken in seconds.items()},
        {way: torch.cat(found) for way, found in chunks.items()},
    )


if __name__ == "__main__":
    main()

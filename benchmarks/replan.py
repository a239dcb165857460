"""From observation to chunk: LeRobot, smolact's policy and its engine, in one process, on the same weights, pictures and noise.

Run with the interpreter of an environment that holds LeRobot 0.6.1 (see compare_lerobot.py), or with any other and
`--without-lerobot`. `scripts/bench` does it:

    python benchmarks/replan.py --repeats=5 --output=benchmarks/results/replan_MACHINE.json
    python benchmarks/replan.py --device=cuda --batch=1,8 --repeats=30 --profile=PROFILE.txt --without-lerobot

SmolVLA-450M shapes, random weights, two cameras of 480×640, 20 tokens, chunk 50, 10 steps; observations lie on the device. The sides
take turns. Beside the seconds on the clock stand those of the processor, which other work on the machine lengthens less, or those
between two events of the GPU. Every side says how far its chunk is from the policy's in float32, from the same noise.
"""

from __future__ import annotations

import argparse
import resource
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
from compare_lerobot import make_batch, make_both, make_ours, sizes_of
from measuring import (
    Contest,
    Side,
    computing_in,
    parser_of,
    precisions,
    profiled,
    relative,
    run,
    setting_of,
    table,
)

from smolact.policies.smolvla.engine import SmolVLAEngine
from smolact.policies.smolvla.modeling_smolvla import SmolVLAPolicy

CHUNK, TOKENS = 50, 20
BASE = "policy, float32"


def main() -> None:
    parser = parser_of(__doc__, repeats=5)
    parser.add_argument("--preset", default="smolvlm2-500m")
    parser.add_argument("--batch", default="1", help="observations answered at once; several with commas")
    parser.add_argument(
        "--kernels", action="store_true", help="only engines with kernels of our own, beside those without"
    )
    parser.add_argument("--steps", action="store_true", help="also fewer steps and other solvers")
    parser.add_argument("--compile", action="store_true", help="also torch.compile: minutes, at first")
    parser.add_argument("--without-lerobot", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = arguments.device
    theirs, ours = make_policies(arguments)
    record = setting_of(device) | {
        "preset": arguments.preset,
        "base": "LeRobot" if theirs else BASE,
        "differences": f"to '{BASE}'",
        "notes": [] if theirs else ["LeRobot was left out (--without-lerobot)."],
    }
    engines, dtypes = Engines(ours), precisions(device, arguments.bfloat16)
    contests: list[Contest] = []
    for size in map(int, arguments.batch.split(",")):
        contest = Contest(device, record["base"])
        for name, make in sides(theirs, ours, engines, dtypes, size, arguments):
            contest.add(name, make)
        record["peak_memory_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        run(record, f"batch {size}", contest, arguments)
        contests.append(contest)
    for name, side in contests[0].sides.items() if arguments.profile else ():
        if name.startswith(f"engine, {list(dtypes)[-1]}") and "×" not in name and "observe" not in name:
            profiled(name, side, device, arguments.profile)
    sys.stdout.write(table(record) + "\n")
    sys.exit(bool(record["failed"]))


def make_policies(arguments: argparse.Namespace) -> tuple[dict[str, nn.Module], SmolVLAPolicy]:
    """LeRobot's by name, if it is wanted, and ours."""
    sizes, device = sizes_of(arguments.preset), arguments.device
    if arguments.without_lerobot:
        return {}, make_ours(arguments.preset, **sizes).eval().to(device)
    their, ours = make_both(arguments.preset, **sizes, device=device.type)
    theirs = {"LeRobot": their}
    if arguments.compile:
        theirs["LeRobot, compile_model=true"], _ = make_both(
            arguments.preset, **sizes, device=device.type, compile_model=True
        )
    torch.set_float32_matmul_precision("highest")  # `compile_model` has set it for all
    return {name: policy.eval().to(device) for name, policy in theirs.items()}, ours.eval().to(device)


class Engines:
    """Engines of one policy, each made once."""

    def __init__(self, policy: SmolVLAPolicy) -> None:
        self._policy = policy
        self._made: dict[str, SmolVLAEngine] = {}

    def __call__(self, **settings: Any) -> SmolVLAEngine:
        """One with these settings; whatever shape it meets is recorded where there are graphs."""
        if str(settings) not in self._made:
            self._made[str(settings)] = SmolVLAEngine(self._policy, capture=True, **settings)
        return self._made[str(settings)]


def sides(
    theirs: Mapping[str, nn.Module],
    ours: SmolVLAPolicy,
    engines: Engines,
    dtypes: Mapping[str, torch.dtype],
    size: int,
    arguments: argparse.Namespace,
) -> Iterator[tuple[str, Callable[[], Side]]]:
    """Names, and what makes each."""
    device = arguments.device
    drawn = make_batch(size, CHUNK, *list(sizes_of(arguments.preset).values())[:2], TOKENS, 0)
    batch = {key: value.to(device) for key, value in drawn.items() if key != "action"}
    noise = torch.randn(size, CHUNK, 32, generator=torch.Generator().manual_seed(1)).to(device)
    expected = ours.predict_action_chunk(batch, noise)

    def predicting(policy: Any) -> Side:
        return compared(lambda: policy.predict_action_chunk(dict(batch), noise=noise))

    def compared(work: Callable[[], Tensor], before: Callable[[], object] | None = None) -> Side:
        if before is not None:
            before()
        return Side(lambda _: work(), before, {"chunk": relative(work(), expected)})

    def computing(policy: Any, precision: str) -> Side:
        def work() -> Tensor:
            with computing_in(precision, device):
                chunk: Tensor = policy.predict_action_chunk(dict(batch), noise=noise)
            return chunk.float()

        return compared(work)

    def acting(engine: SmolVLAEngine) -> Side:
        return compared(lambda: engine.act(batch, noise), lambda: engine.observe(batch))

    def observing(engine: SmolVLAEngine) -> Side:
        engine.observe(batch)
        return Side(lambda _: engine.observe(batch))

    quickest = list(dtypes)[-1]
    yield BASE, lambda: predicting(ours)
    if not arguments.kernels:
        for name, policy in theirs.items():
            yield name, lambda policy=policy: predicting(policy)
            if "bfloat16" in dtypes:
                yield f"{name}, bfloat16 autocast", lambda policy=policy: computing(policy, "bfloat16")
        if device.type == "cuda":
            yield "policy, TF32", lambda: computing(ours, "TF32")
        if "bfloat16" in dtypes:
            yield "policy, bfloat16 autocast", lambda: computing(ours, "bfloat16")
    for name, settings in ways_to_build(device, dtypes, arguments):
        yield f"engine, {name}", lambda settings=settings: predicting(engines(**settings))
        if arguments.kernels or name == quickest:
            yield f"engine, {name}, act alone", lambda settings=settings: acting(engines(**settings))
        if name == quickest:
            yield f"engine, {name}, observe alone", lambda settings=settings: observing(engines(**settings))


def ways_to_build(
    device: torch.device, dtypes: Mapping[str, torch.dtype], arguments: argparse.Namespace
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Names of engines, and the settings of each."""
    name, dtype = list(dtypes.items())[-1]
    if arguments.kernels:
        for options in ((), ("triton",), ("fp8",), ("triton", "fp8")):
            yield ", ".join([name, *options]), {"dtype": dtype, **dict.fromkeys(options, True)}
        return
    for each, its in dtypes.items():
        yield each, {"dtype": its}
        if device.type == "cuda":
            yield f"{each}, no graphs", {"dtype": its, "graphs": False}
    if device.type == "cpu":
        yield "int8", {"int8": True}
    if arguments.compile:
        yield f"{name}, compiled", {"dtype": dtype, "compile": True}
    for steps, solver in ((5, "euler"), (2, "midpoint"), (1, "euler")) if arguments.steps else ():
        yield f"{name}, {steps} × {solver}", {"dtype": dtype, "num_steps": steps, "solver": solver}


if __name__ == "__main__":
    main()

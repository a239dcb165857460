"""A training step of the expert: LeRobot, smolact, and smolact with vision tokens that were kept (`--cache.features=true`).

    python benchmarks/training_step.py [--repeats=3] [--output=RESULTS.json]
    python benchmarks/training_step.py --device=cuda --samples=64 --repeats=10 --checkpointing --without-lerobot

With the interpreter of an environment that holds LeRobot 0.6.1 (see compare_lerobot.py), or with any other and `--without-lerobot`.
SmolVLA-450M shapes, random weights, two cameras of 480×640, 20 tokens, chunk 50, 4 samples; forward, backward, AdamW. The sides take
turns, medians count. Beside the times stand how far losses and gradients are from the first side's in float32, with the same noise
and times. On a GPU there are also TensorFloat-32, which LeRobot trains in, and bfloat16 autocast (`--policy.use_amp=true`).
"""

from __future__ import annotations

import argparse
import copy
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
    gradients,
    parser_of,
    precisions,
    profiled,
    relative,
    run,
    setting_of,
    table,
    worst,
)

from smolact.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from smolact.types import VISION_TOKENS, is_image_key

CHUNK, TOKENS = 50, 20
KEPT = ", kept tokens"

Batch = dict[str, Tensor]


def main() -> None:
    """Measure, and print a table."""
    parser = parser_of(__doc__, repeats=3)
    parser.add_argument("--preset", default="smolvlm2-500m")
    parser.add_argument("--samples", type=int, default=4, help="of a batch")
    parser.add_argument("--checkpointing", action="store_true", help="also --gradient_checkpointing=true")
    parser.add_argument(
        "--compile", metavar="MODE", help="also --policy.compile_model=true, in this mode: minutes, at first"
    )
    parser.add_argument("--without-lerobot", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device, sizes = arguments.device, sizes_of(arguments.preset)
    if arguments.without_lerobot:
        theirs, ours = None, make_ours(arguments.preset, **sizes)
    else:
        theirs, ours = make_both(arguments.preset, **sizes, device=device.type)
    policies = {
        name: policy.to(device) for name, policy in (("LeRobot", theirs), ("smolact", ours)) if policy
    }
    steps = Steps(arguments)
    contest = Contest(device)
    for name, policy, batch, precision in sides(policies, steps, arguments):
        contest.add(
            name, lambda policy=policy, batch=batch, precision=precision: steps(policy(), batch, precision)
        )
    first = next(iter(contest.sides), None)
    record = setting_of(device) | {
        "preset": arguments.preset,
        "samples": arguments.samples,
        "base": first,
        "differences": f"to '{first}'",
        "notes": [] if theirs else ["LeRobot was left out (--without-lerobot)."],
    }
    run(record, f"a step of {arguments.samples} samples", contest, arguments, arguments.samples)
    if arguments.profile:
        for name in [name for name in contest.sides if name.startswith(f"smolact, {list(steps.dtypes)[-1]}")][
            :2
        ]:
            profiled(name, contest.sides[name], device, arguments.profile)
    sys.stdout.write(table(record) + "\n")
    sys.exit(bool(record["failed"]))


def sides(
    policies: Mapping[str, nn.Module], steps: Steps, arguments: argparse.Namespace
) -> Iterator[tuple[str, Callable[[], nn.Module], Batch, str]]:
    """Name, what makes the policy, batch, precision; what others are compared with comes first."""
    ours: Any = policies["smolact"]
    kept = steps.keep(ours)
    names = [*steps.dtypes]
    if arguments.device.type == "cuda":
        names.insert(1, "TF32")
    for precision in names:
        for name, policy in policies.items():
            yield f"{name}, {precision}", lambda policy=policy: policy, steps.batch, precision
        yield f"smolact, {precision}{KEPT}", lambda: ours, kept, precision
    quickest = names[-1]
    if arguments.checkpointing:
        yield f"smolact, {quickest}, checkpointing", lambda: recomputing(ours), steps.batch, quickest
    if arguments.compile:
        for data in (steps.batch, kept):
            name = f"smolact, {quickest}, compiled{KEPT if data is kept else ''}"
            yield name, lambda: compiled(ours, arguments.compile), data, quickest


def recomputing(policy: SmolVLAPolicy) -> SmolVLAPolicy:
    """A copy that makes activations again in the backward pass."""
    policy = copy.deepcopy(policy)
    policy.recompute_activations()
    return policy


def compiled(policy: SmolVLAPolicy, mode: str) -> SmolVLAPolicy:
    """A copy as `--policy.compile_model=true` makes it."""
    config = policy.config.replace(compile_model=True, compile_mode=mode)
    copied = SmolVLAPolicy(config, vlm=policy.vlm, pretrained_vlm=False)
    copied.load_state_dict(policy.state_dict())
    return copied.to(next(policy.parameters()).device)


class Steps:
    """Makes sides that take a step with the same samples, noise and times; knows the first one's loss and gradients."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        samples, self._device = arguments.samples, arguments.device
        height, width, _ = sizes_of(arguments.preset).values()
        drawn = make_batch(samples, CHUNK, height, width, TOKENS, 1)
        self.batch: Batch = {key: value.to(self._device) for key, value in drawn.items()}
        self.dtypes = precisions(self._device, arguments.bfloat16)
        generator = torch.Generator().manual_seed(2)
        self._noise = torch.randn(samples, CHUNK, 32, generator=generator).to(self._device)
        self._times = torch.linspace(0.2, 0.8, samples).to(self._device)
        self._optimizers: dict[nn.Module, torch.optim.Optimizer] = {}
        self._expected: tuple[Tensor, dict[str, Tensor]] | None = None

    @torch.no_grad()
    def keep(self, policy: SmolVLAPolicy) -> Batch:
        """The batch with vision tokens in the place of pictures, in bfloat16 as they are kept."""
        return {
            key + VISION_TOKENS if is_image_key(key) else key: policy.encode_images(value).bfloat16()
            if is_image_key(key)
            else value
            for key, value in self.batch.items()
        }

    def __call__(self, policy: nn.Module, batch: Batch, precision: str) -> Side:
        """A side, which has taken a step."""
        if policy not in self._optimizers:
            trained = [p for p in policy.parameters() if p.requires_grad]
            # A rate that changes nothing: all steps start from the same weights.
            self._optimizers[policy] = torch.optim.AdamW(trained, lr=1e-9, fused=True)
        optimizer = self._optimizers[policy]

        def differentiate() -> Tensor:
            with computing_in(precision, self._device):
                loss, _ = policy.forward(dict(batch), noise=self._noise, time=self._times)
                loss.backward()
            return loss.detach()

        def step(_: object) -> None:
            differentiate()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        optimizer.zero_grad(set_to_none=True)  # of a side that ran out of memory, perhaps
        loss, own = differentiate(), gradients(policy)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if self._expected is None:
            self._expected = loss, own
        of_loss, of_gradients = self._expected
        differences = {"loss": relative(loss, of_loss), "gradients": worst(own, of_gradients)}
        return Side(step, differences=differences)


if __name__ == "__main__":
    main()

"""smolact beside LeRobot, in one process, on the same weights, batches and noise.

Run with the interpreter of an environment that holds LeRobot 0.6.1 (Python 3.12; `pip install 'lerobot[smolvla]==0.6.1'`,
then `pip install --no-deps .` for smolact):

    python benchmarks/compare_lerobot.py train     # 100 steps: the largest relative difference of the loss
    python benchmarks/compare_lerobot.py load      # what smolact saves, LeRobot loads and predicts with
    python benchmarks/compare_lerobot.py speed     # replan and training step on SmolVLA-450M shapes

Each prints a table and, with --output=FILE, writes JSON with the machine, the versions and the command.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measuring import processor_name, relative
from torch import Tensor, nn

from smolact.backbones.presets import find_vlm
from smolact.policies.smolvla.configuration_smolvla import SmolVLAConfig
from smolact.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from smolact.types import FeatureType, PolicyFeature

STATE_DIM = 6


def features(height: int, width: int) -> tuple[dict[str, Any], dict[str, Any]]:
    cameras = {
        f"observation.images.{name}": {"type": "VISUAL", "shape": [3, height, width]}
        for name in ("top", "wrist")
    }
    state = {"observation.state": {"type": "STATE", "shape": [STATE_DIM]}}
    return {**cameras, **state}, {"action": {"type": "ACTION", "shape": [STATE_DIM]}}


def settings(vlm: Path | str, height: int, width: int, **overrides: Any) -> dict[str, Any]:
    inputs, outputs = features(height, width)
    return {
        "type": "smolvla",
        "input_features": inputs,
        "output_features": outputs,
        "vlm_model_name": str(vlm),
        "device": "cpu",
        **overrides,
    }


def make_theirs(data: dict[str, Any]) -> nn.Module:
    from lerobot.configs.types import FeatureType, PolicyFeature
    from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig as TheirConfig
    from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy as TheirPolicy

    return TheirPolicy(
        TheirConfig(**as_objects(data, lambda kind, shape: PolicyFeature(FeatureType(kind), shape)))
    )


def as_objects(data: dict[str, Any], feature: Callable[[str, tuple[int, ...]], object]) -> dict[str, Any]:
    """Settings for a constructor, from those of a file."""
    sides = {
        side: {key: feature(one["type"], tuple(one["shape"])) for key, one in data[side].items()}
        for side in ("input_features", "output_features")
    }
    return {key: value for key, value in data.items() if key != "type"} | sides


def sizes_of(preset: str) -> dict[str, Any]:
    """Pictures that a preset's images fit, and the images: 480×640 and 512×512 for SmolVLM2."""
    size = find_vlm(preset).config.vision_config.image_size
    return {
        "height": size * 15 // 16,
        "width": size * 5 // 4,
        "resize_imgs_with_padding": (size, size),
    }


def make_ours(preset: str, height: int, width: int, **overrides: Any) -> SmolVLAPolicy:
    data = settings(preset, height, width, **overrides)
    torch.manual_seed(0)
    return SmolVLAPolicy(
        SmolVLAConfig(**as_objects(data, lambda kind, shape: PolicyFeature(FeatureType(kind), shape)))
    )


def make_both(preset: str, height: int, width: int, **overrides: Any) -> tuple[nn.Module, SmolVLAPolicy]:
    folder = Path(tempfile.mkdtemp()) / "vlm"
    find_vlm(preset).save(folder)
    data = settings(folder, height, width, **overrides)
    torch.manual_seed(0)
    theirs = make_theirs(data)
    ours = SmolVLAPolicy(SmolVLAConfig.from_dict(data))
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def make_batch(size: int, chunk: int, height: int, width: int, tokens: int, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    cameras = {
        f"observation.images.{name}": torch.rand(size, 3, height, width, generator=generator)
        for name in ("top", "wrist")
    }
    return {
        **cameras,
        "observation.state": torch.randn(size, STATE_DIM, generator=generator),
        "observation.language.tokens": torch.randint(10, 500, (size, tokens), generator=generator),
        "observation.language.attention_mask": torch.ones(size, tokens, dtype=torch.bool),
        "action": torch.randn(size, chunk, STATE_DIM, generator=generator),
    }


def compare_training(arguments: argparse.Namespace) -> dict[str, Any]:
    """The same 100 optimizer steps on both sides; float32, AdamW, gradients clipped at 10, warm-up of 10 steps."""
    chunk = 16
    theirs, ours = make_both(
        "tiny", 48, 64, chunk_size=chunk, n_action_steps=chunk, resize_imgs_with_padding=(64, 64)
    )
    sides = []
    for policy in (theirs, ours):
        policy.train()
        trainable = [p for p in policy.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trainable, lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=1e-10)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 10))
        sides.append((policy, trainable, optimizer, schedule))
    worst, losses = 0.0, []
    for step in range(arguments.steps):
        batch = make_batch(4, chunk, 48, 64, 12, seed=step)
        generator = torch.Generator().manual_seed(10_000 + step)
        noise = torch.randn(4, chunk, 32, generator=generator)
        times = torch.rand(4, generator=generator) * 0.998 + 0.001
        pair = []
        for policy, trainable, optimizer, schedule in sides:
            loss, _ = policy.forward(dict(batch), noise=noise, time=times)
            loss.backward()
            nn.utils.clip_grad_norm_(trainable, 10.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            pair.append(float(loss.detach()))
        worst = max(worst, abs(pair[1] - pair[0]) / abs(pair[0]))
        losses.append(pair)
    print(f"{'step':>6} {'LeRobot':>12} {'smolact':>12}")
    for step in sorted({0, 9, 49, arguments.steps - 1}):
        print(f"{step + 1:>6} {losses[step][0]:>12.8f} {losses[step][1]:>12.8f}")
    weights = max(
        relative(mine.detach(), their.detach())
        for (_, mine), (_, their) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True)
        if mine.requires_grad
    )
    print(f"largest relative difference: loss {worst:.1e}, trained weights {weights:.1e}")
    return {"steps": arguments.steps, "largest_loss_difference": worst, "largest_weight_difference": weights}


def compare_loading(arguments: argparse.Namespace) -> dict[str, Any]:
    """A checkpoint of ours, opened by LeRobot with its own loader, predicts the same chunk from the same noise."""
    from lerobot.policies.factory import make_pre_post_processors as their_processors
    from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy as TheirPolicy

    import smolact
    from smolact.policies.factory import make_policy, make_pre_post_processors

    folder = Path(tempfile.mkdtemp()) / "pretrained_model"
    find_vlm("tiny").save(folder.parent / "vlm")
    torch.manual_seed(1)
    data = settings(
        folder.parent / "vlm", 48, 64, chunk_size=8, n_action_steps=8, resize_imgs_with_padding=(64, 64)
    )
    policy = make_policy(SmolVLAConfig.from_dict(data)).eval()
    stats = {
        key: {"mean": torch.arange(6.0) + 1, "std": torch.arange(6.0) * 0.5 + 0.5}
        for key in ("observation.state", "action")
    }
    for part in (policy, *make_pre_post_processors(policy, stats)):
        part.save_pretrained(folder)
    observation = {
        key: value[0] for key, value in make_batch(1, 8, 48, 64, 5, seed=3).items() if "language" not in key
    }
    observation = {**{k: v for k, v in observation.items() if k != "action"}, "task": "push the red block"}
    noise = torch.randn(1, 8, 32, generator=torch.Generator().manual_seed(4))

    ours, pre, post = smolact.load_policy(folder, device="cpu")
    mine = post(ours.predict_action_chunk(pre(observation), noise=noise))
    theirs = TheirPolicy.from_pretrained(folder)
    their_pre, their_post = their_processors(theirs.config, pretrained_path=str(folder))
    found = their_post(theirs.predict_action_chunk(their_pre(dict(observation)), noise=noise.clone()))
    difference = relative(mine, found)
    print(f"chunk {tuple(found.shape)}, relative difference {difference:.1e}")
    return {"chunk_difference": difference}


def compare_speed(arguments: argparse.Namespace) -> dict[str, Any]:
    """SmolVLA-450M shapes: two cameras of 480×640, 20 tokens, chunk 50, 10 steps; sides alternate, medians count."""
    theirs, ours = make_both("smolvlm2-500m", 480, 640)
    one, four = make_batch(1, 50, 480, 640, 20, 0), make_batch(4, 50, 480, 640, 20, 1)
    noise_one, noise_four = torch.randn(1, 50, 32), torch.randn(4, 50, 32)
    times = torch.tensor([0.2, 0.4, 0.6, 0.8])

    def replan(policy: nn.Module) -> Tensor:
        return policy.predict_action_chunk(dict(one), noise=noise_one)

    def step(policy: nn.Module) -> Tensor:
        loss, _ = policy.forward(dict(four), noise=noise_four, time=times)
        loss.backward()
        for parameter in policy.parameters():
            parameter.grad = None
        return loss.detach()

    rows = {}
    for name, work, repeats in (
        ("replan", replan, arguments.repeats),
        ("step, B=4", step, max(2, arguments.repeats // 2)),
    ):
        seconds, results = time_alternating(
            lambda p=theirs, w=work: w(p), lambda p=ours, w=work: w(p), repeats
        )
        row = {
            "lerobot_seconds": statistics.median(seconds[0]),
            "smolact_seconds": statistics.median(seconds[1]),
            "spread": [[min(side), max(side)] for side in seconds],
            "difference": relative(results[1], results[0]),
        }
        row["ratio"] = row["lerobot_seconds"] / row["smolact_seconds"]
        rows[name] = row
        print(
            f"{name:>10}: LeRobot {row['lerobot_seconds']:.2f} s, smolact {row['smolact_seconds']:.2f} s, "
            f"{row['ratio']:.2f}×, relative difference {row['difference']:.1e}"
        )
    return rows


def time_alternating(
    first: Callable[[], Tensor], second: Callable[[], Tensor], repeats: int
) -> tuple[list[list[float]], list[Tensor]]:
    results = [first(), second()]  # warm up
    seconds: list[list[float]] = [[], []]
    for _ in range(repeats):
        for side, work in enumerate((first, second)):
            begin = time.perf_counter()
            work()
            seconds[side].append(time.perf_counter() - begin)
    return seconds, results


def main() -> None:
    warnings.filterwarnings("ignore")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["train", "load", "speed"])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    work = {"train": compare_training, "load": compare_loading, "speed": compare_speed}[arguments.what]
    figures = work(arguments)
    if arguments.output:
        import lerobot

        record = {
            "command": "python benchmarks/compare_lerobot.py " + " ".join(sys.argv[1:]),
            "machine": f"{os.cpu_count()} cores, {processor_name()}",
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "lerobot": lerobot.__version__,
            },
            "figures": figures,
        }
        arguments.output.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()

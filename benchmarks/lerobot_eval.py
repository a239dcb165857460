"""A checkpoint in `lerobot-eval` with our plugin, and in smolact's evaluation: the same episodes of PushT, reward by reward.

    python benchmarks/lerobot_eval.py --checkpoint=CHECKPOINT --folder=FOLDER [--episodes=10] [--output=RESULTS.json]

With the interpreter of an environment that holds LeRobot 0.6.1 (see compare_lerobot.py), the plugin
(`pip install --no-deps ./plugins/lerobot_policy_smolact`) and gym-pusht.

`lerobot-eval` is run twice: as it comes, and with the noise of each episode in the place of the draws of torch's one generator,
which this file (not the plugin) passes to `select_action`. LeRobot seeds episode i with seed + i, and tells the policy an empty
instruction, since PushT says none; so smolact plays those seeds with an empty instruction, and once more with PushT's words.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from lerobot.scripts import lerobot_eval
from lerobot_policy_smolact.policy import SmolactPolicy

import smolact
from smolact.envs.factory import PUSHT, make_env
from smolact.envs.seeding import episode_seed
from smolact.evaluation.rollout import EpisodePlan, evaluate
from smolact.runtime.local import LocalPolicy
from smolact.types import EmptyInstruction

SEED = 1000


def main() -> None:
    """Play, and print a JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, required=True, help="smolvla_fast or smolandfast")
    parser.add_argument("--folder", type=Path, required=True, help="for what lerobot-eval writes")
    parser.add_argument("--episodes", type=int, default=10)
    parser.add_argument("--batch_size", type=int, default=1, help="episodes side by side")
    parser.add_argument("--steps", type=int, default=300, help="the longest episode")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    words = PUSHT.task
    with same_noise(arguments.batch_size):
        theirs = played_by_lerobot(arguments, "same_noise")
    runs = {
        "lerobot-eval, the same noise": theirs,
        "smolact, told nothing": played_by_smolact(arguments, EmptyInstruction()),
        "lerobot-eval, as it comes": played_by_lerobot(arguments, "as_it_comes"),
        f"smolact, told '{words}'": played_by_smolact(arguments, words),
    }
    ours = runs["smolact, told nothing"]
    figures = {
        "command": "python benchmarks/lerobot_eval.py --checkpoint=CHECKPOINT",
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}",
        "policy": json.loads((arguments.checkpoint / "config.json").read_text(encoding="utf-8"))["type"],
        "environment": f"pusht, at most {arguments.steps} steps; {arguments.batch_size} at once",
        "seeds": [SEED, SEED + arguments.episodes - 1],
        "largest difference of an episode": {
            kind: max(abs(a - b) for a, b in zip(theirs[kind], ours[kind], strict=True)) for kind in ours
        },
        "mean of the largest rewards": {
            name: sum(found["max_rewards"]) / len(found["max_rewards"]) for name, found in runs.items()
        },
        "runs": runs,
    }
    text = json.dumps(figures, indent=2, ensure_ascii=False) + "\n"
    if arguments.output:
        arguments.output.write_text(text, encoding="utf-8")
    sys.stdout.write(text)


def played_by_lerobot(arguments: argparse.Namespace, name: str) -> dict[str, list[float]]:
    """`lerobot-eval`, as it is typed."""
    output = arguments.folder / name
    sys.argv = [
        "lerobot-eval", f"--policy.path={arguments.checkpoint}", "--policy.device=cpu", "--env.type=pusht",
        f"--env.episode_length={arguments.steps}", f"--eval.n_episodes={arguments.episodes}",
        f"--eval.batch_size={arguments.batch_size}", "--eval.use_async_envs=false", f"--seed={SEED}",
        f"--output_dir={output}",
    ]  # fmt: skip
    lerobot_eval.main()
    info = json.loads((output / "eval_info.json").read_text(encoding="utf-8"))
    found = info["per_task"][0]["metrics"]
    return {kind: [float(one) for one in found[kind]] for kind in ("max_rewards", "successes")}


def played_by_smolact(arguments: argparse.Namespace, task: str | None) -> dict[str, list[float]]:
    """The same episodes by our own evaluation, with the engine, as `smolact eval` has it."""
    loaded = smolact.load_policy(arguments.checkpoint, device="cpu", engine={"dtype": torch.float32})
    plans = [EpisodePlan(index, SEED + index) for index in range(arguments.episodes)]
    with make_env("pusht", arguments.batch_size, task=task, max_episode_steps=arguments.steps) as envs:
        played = evaluate(LocalPolicy(*loaded), envs, n_episodes=len(plans), seed=SEED, plans=plans)
    return {
        "max_rewards": [one.max_reward for one in played.results],
        "successes": [float(one.success) for one in played.results],
    }


@contextlib.contextmanager
def same_noise(batch_size: int) -> Iterator[None]:
    """The noise of every chunk follows from the seed of its episode, as in smolact's evaluation."""
    plain = {name: getattr(SmolactPolicy, name) for name in ("reset", "select_action")}
    waves = itertools.count()
    seeds: list[int] = []
    steps = itertools.count()

    def reset(self: Any) -> None:
        nonlocal steps
        first = SEED + next(waves) * batch_size
        seeds[:] = range(first, first + batch_size)
        steps = itertools.count()
        plain["reset"](self)

    def select_action(self: Any, batch: Any, **more: Any) -> torch.Tensor:
        shape = self.player.noise_shape
        if shape is not None:
            replan = next(steps) // self.config.n_action_steps
            more["noise"] = noise_of(shape, [episode_seed(seed, replan, "noise") for seed in seeds])
        found: torch.Tensor = plain["select_action"](self, batch, **more)
        return found

    SmolactPolicy.reset, SmolactPolicy.select_action = reset, select_action  # type: ignore[method-assign]
    try:
        yield
    finally:
        for name, method in plain.items():
            setattr(SmolactPolicy, name, method)


def noise_of(shape: Sequence[int], seeds: Sequence[int]) -> torch.Tensor:
    return torch.stack(
        [torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    )


if __name__ == "__main__":
    main()

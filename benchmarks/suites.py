"""Meta-World, ALOHA and LIBERO in `lerobot-eval` and in smolact's evaluation: what an episode costs, and that both play the same.

    python benchmarks/suites.py --env=metaworld --task=reach-v3,assembly-v3 --episodes=2 --rounds=3 --output=RESULTS.json

With the interpreter of an environment that holds LeRobot 0.6.1 and the suite's packages (see compare_lerobot.py). Both sides play
the same episodes with the same random actions, of which the policy gives ten at a time; the policy itself takes no time, and no
films are made. The sides take turns, each in a process of its own. Counted are the seconds of all processors, after the imports.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np

SEED, CHUNK = 1000, 10
SIDES = ("lerobot", "smolact")


class Draws:
    """The chunks (10, A) of one episode after another."""

    def __init__(self, width: int) -> None:
        self.width, self.episode = width, -1

    def reset(self) -> None:
        """Begin the next episode."""
        self.episode += 1
        self.random = np.random.default_rng(self.episode)

    def chunk(self) -> np.ndarray:
        """The next ten actions."""
        return self.random.uniform(-1, 1, (CHUNK, self.width)).astype(np.float32)


def main() -> None:
    """Measure one side, or both in turns."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--env", default="metaworld")
    parser.add_argument("--task", required=True)
    parser.add_argument("--episodes", type=int, default=2, help="of each task")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="the figures are added to it, as JSON")
    parser.add_argument("--side", choices=SIDES, help="this one only, in this process")
    arguments = parser.parse_args()
    if arguments.side:
        sys.stdout.write(
            json.dumps({"lerobot": lerobot, "smolact": smolact}[arguments.side](arguments)) + "\n"
        )
        return
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for number in range(arguments.rounds):
        for side in SIDES[:: -1 if number % 2 else 1]:
            runs[side].append(apart(side))
            sys.stderr.write(f"{side}: {runs[side][-1]}\n")
    rows = {
        side: {
            "cpu_seconds_an_episode": round(
                median(one["cpu"] / len(one["successes"]) for one in runs[side]), 3
            ),
            "seconds_an_episode": round(
                median(one["clock"] / len(one["successes"]) for one in runs[side]), 3
            ),
            "steps": runs[side][0]["steps"],
        }
        for side in SIDES
    }
    found = {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {os.environ.get('MUJOCO_GL', 'egl')}",
        "rounds": arguments.rounds,
        **rows,
        "lerobot / smolact": round(
            rows["lerobot"]["cpu_seconds_an_episode"] / rows["smolact"]["cpu_seconds_an_episode"], 2
        ),
        "same successes": all(
            one["successes"] == runs["lerobot"][0]["successes"] for side in SIDES for one in runs[side]
        ),
    }
    name = f"{arguments.env} {arguments.task}, {arguments.episodes} episodes a task"
    if arguments.output:
        record = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
        arguments.output.write_text(json.dumps({**record, name: found}, indent=2) + "\n")
    sys.stdout.write(json.dumps(found, indent=2) + "\n")


def apart(side: str) -> dict[str, Any]:
    """What a side says in a process of its own."""
    command = [sys.executable, *sys.argv, f"--side={side}"]
    environment = {"MUJOCO_GL": "egl", **os.environ}
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def lerobot(arguments: argparse.Namespace) -> dict[str, Any]:
    """`lerobot-eval`'s loop over its own environments."""
    import torch
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.envs.configs import EnvConfig
    from lerobot.envs.factory import make_env
    from lerobot.policies.pretrained import PreTrainedPolicy
    from lerobot.scripts.lerobot_eval import eval_policy_all

    config = EnvConfig.get_choice_class(arguments.env)(task=arguments.task)
    environment, environment_after = config.get_env_processors()
    envs = make_env(config, n_envs=1)
    width = next(iter(next(iter(envs.values())).values())).single_action_space.shape[0]

    class Random(PreTrainedPolicy):  # type: ignore[misc]
        config_class, name = PreTrainedConfig, "random"

        def __init__(self) -> None:
            torch.nn.Module.__init__(self)
            self.config, self.draws, self.due, self.steps = SimpleNamespace(), Draws(width), [], 0

        def reset(self) -> None:
            self.draws.reset()
            self.due = []

        def select_action(self, batch: Any, **_: Any) -> torch.Tensor:
            self.due = self.due or list(torch.from_numpy(self.draws.chunk()))
            self.steps += 1
            return self.due.pop(0)[None]

        predict_action_chunk = forward = get_optim_params = reset

    policy = Random()
    policy.steps = 0
    with tempfile.TemporaryDirectory():
        clock, cpu = time.perf_counter(), time.process_time()
        info = eval_policy_all(
            envs, policy, environment, environment_after, lambda x: x, lambda x: x, arguments.episodes,
            start_seed=SEED,
        )  # fmt: skip
    return {
        "cpu": time.process_time() - cpu,
        "clock": time.perf_counter() - clock,
        "successes": [bool(one) for task in info["per_task"] for one in task["metrics"]["successes"]],
        "steps": policy.steps,
    }


def smolact(arguments: argparse.Namespace) -> dict[str, Any]:
    """smolact's evaluation."""
    from smolact.envs.factory import make_env
    from smolact.evaluation.rollout import evaluate
    from smolact.runtime.policy import Policy
    from smolact.types import is_image_key
    from smolact_client import Schema

    with make_env(arguments.env, task=arguments.task) as envs:
        sizes = {key: feature.shape for key, feature in envs.features.items() if key != "action"}
        width = envs.features["action"].shape[0]

        class Random(Policy):
            def __init__(self) -> None:
                self.draws = Draws(width)
                self.schema = Schema(
                    "random",
                    {key: size[1:] for key, size in sizes.items() if is_image_key(key)},
                    {key: size[0] for key, size in sizes.items() if not is_image_key(key)},
                    action=width, chunk_size=CHUNK, n_action_steps=CHUNK,
                )  # fmt: skip

            def reset(self) -> None:
                self.draws.reset()

            def predict(self, requests: Any) -> list[np.ndarray]:
                return [self.draws.chunk() for _ in requests]

        clock, cpu = time.perf_counter(), time.process_time()
        played = evaluate(Random(), envs, n_episodes=arguments.episodes, seed=SEED)
    return {
        "cpu": time.process_time() - cpu,
        "clock": time.perf_counter() - clock,
        "successes": [one.success for one in played.results],
        "steps": sum(one.steps for one in played.results),
    }


if __name__ == "__main__":
    main()

"""The demo's evaluation: as many episodes as there is time for, in as many processes as there are cores."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from smolact.cli.progress import announce, progress_bar
from smolact.machine import one_thread

if TYPE_CHECKING:
    from rich.console import Console

    from smolact.evaluation.showcase import ShowcaseEpisode
    from smolact.evaluation.suite import EpisodeLog, Results, Shard

FACTS = ("n_action_steps", "chunk_size", "num_steps")
FILMED = 6
ROUNDS = (10, 20, 50, 100)
"""Episodes in each condition after each round. The first round is always played; another one if it will end in time."""
SIDE_BY_SIDE = 25


@dataclass(frozen=True)
class DemoEvaluation:
    """What each process plays a share of.

    Attributes:
        checkpoint: of the policy.
        env: by name.
        folder: of the episodes' log.
        seed: of the scenes.
        until: when the last round must be over, by `time.time`, which all processes share.
        rounds: episodes in each condition after each round.
    """

    checkpoint: Path
    env: str
    folder: Path
    seed: int
    until: float
    rounds: tuple[int, ...] = ROUNDS

    @property
    def policies(self) -> list[str]:
        """The one policy, as logs name it."""
        return [str(self.checkpoint)]

    def log(self, share: Shard | None = None) -> EpisodeLog:
        """The episodes that are over."""
        from smolact.evaluation.suite import EpisodeLog, Shard

        return EpisodeLog(self.folder, {"policies": self.policies, "seed": self.seed}, share or Shard())

    def __call__(self, share: Shard) -> None:
        """Play this process's share, round by round."""
        from smolact.envs.factory import make_env
        from smolact.evaluation.conditions import conditions_for
        from smolact.evaluation.suite import run_suite
        from smolact.policies.factory import load_policy
        from smolact.runtime.local import LocalPolicy

        policy = LocalPolicy(*load_policy(self.checkpoint, device="cpu"))
        log, began, played = self.log(share), time.time(), 0
        with make_env(self.env, SIDE_BY_SIDE) as envs:
            conditions = conditions_for(envs)
            for number in self.rounds:
                usual = (time.time() - began) / max(played, 1)
                if played and time.time() + usual * (number - played) > self.until:
                    return
                run_suite(
                    self.policies,
                    lambda _: policy,
                    envs,
                    conditions,
                    log,
                    n_episodes=number,
                    seed=self.seed,
                )
                played = number


def evaluate(
    examination: DemoEvaluation, processes: int, console: Console
) -> tuple[Results, list[ShowcaseEpisode]]:
    """Try the policy in scenes that it has not seen, and see whether it listens; and some episodes to look at."""
    from smolact.envs.factory import make_env
    from smolact.evaluation.conditions import PLAIN, conditions_for
    from smolact.evaluation.shards import play_shards
    from smolact.evaluation.showcase import showcase
    from smolact.evaluation.suite import collect
    from smolact.policies.factory import load_policy
    from smolact.runtime.local import LocalPolicy

    (policy,) = examination.policies
    log = examination.log()
    with make_env(examination.env, FILMED, render=True) as envs:
        conditions = conditions_for(envs)
        names = [PLAIN, *(condition.name for condition in conditions)]
        known = 0

        def look(log: EpisodeLog) -> None:
            nonlocal known
            results = [log.results(policy, name) for name in names]
            now = sum(map(len, results))
            asked = results[0].values()
            note = f"success {sum(one.success for one in asked) / len(asked):.0%}" if asked else ""
            advance(now - known, note)
            known = now

        most = examination.rounds[-1] * len(names)
        title = f"Up to {most} episodes: {examination.rounds[-1]} in each of {len(names)} conditions, as far as the time allows"
        with progress_bar(most, "episodes", first=title, console=console) as advance:
            play_shards(examination, processes, log, look)
        n_episodes = min(_whole(log, policy, name) for name in names)
        console.print(f"{n_episodes} episodes in each of {len(names)} conditions were played")
        loaded = LocalPolicy(*load_policy(examination.checkpoint, device="cpu"))
        facts = {policy: {key: getattr(loaded.config, key, None) for key in FACTS}}
        results = collect([policy], names, log, n_episodes, examination.seed, facts)
        announce("Filming some of them …")
        with one_thread():
            return results, showcase(loaded, envs, results[policy], conditions, FILMED)


def _whole(log: EpisodeLog, policy: str, condition: str) -> int:
    """So many episodes from the first one on are there."""
    there = log.results(policy, condition)
    return next(number for number in range(len(there) + 1) if number not in there)

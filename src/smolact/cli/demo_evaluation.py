"""The demo's evaluation: as many episodes as time allows, in one process per core."""

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
"""Episodes per condition after each round. The first round is always played, a further one only if it will end in time."""
ENVS_PER_PROCESS = 25


@dataclass(frozen=True)
class DemoEvaluation:
    """The evaluation of one policy; each process plays one shard of its episodes.

    Attributes:
        until: deadline of the last round, in `time.time`, which all processes share.
        rounds: episodes per condition after each round.
    """

    checkpoint: Path
    env: str
    folder: Path
    seed: int
    until: float
    rounds: tuple[int, ...] = ROUNDS

    @property
    def policies(self) -> list[str]:
        """The policy's name in the log, as a list."""
        return [str(self.checkpoint)]

    def log(self, shard: Shard | None = None) -> EpisodeLog:
        """Return the log of finished episodes."""
        from smolact.evaluation.suite import EpisodeLog, Shard

        return EpisodeLog(self.folder, {"policies": self.policies, "seed": self.seed}, shard or Shard())

    def __call__(self, shard: Shard) -> None:
        """Play this process's shard, round by round."""
        from smolact.envs.factory import make_env
        from smolact.evaluation.conditions import conditions_for
        from smolact.evaluation.suite import run_suite
        from smolact.policies.factory import load_policy
        from smolact.runtime.local import LocalPolicy

        policy = LocalPolicy(*load_policy(self.checkpoint, device="cpu"))
        log, began, played = self.log(shard), time.time(), 0
        with make_env(self.env, ENVS_PER_PROCESS) as envs:
            conditions = conditions_for(envs)
            for number in self.rounds:
                mean_seconds = (time.time() - began) / max(played, 1)
                if played and time.time() + mean_seconds * (number - played) > self.until:
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
    evaluation: DemoEvaluation, processes: int, console: Console
) -> tuple[Results, list[ShowcaseEpisode]]:
    """Evaluate the policy in unseen scenes, under all conditions of the instruction; also return filmed episodes."""
    from smolact.envs.factory import make_env
    from smolact.evaluation.conditions import PLAIN, conditions_for
    from smolact.evaluation.shards import play_shards
    from smolact.evaluation.showcase import showcase
    from smolact.evaluation.suite import collect
    from smolact.policies.factory import load_policy
    from smolact.runtime.local import LocalPolicy

    (policy,) = evaluation.policies
    log = evaluation.log()
    with make_env(evaluation.env, FILMED, render=True) as envs:
        conditions = conditions_for(envs)
        names = [PLAIN, *(condition.name for condition in conditions)]
        known = 0

        def show_progress(log: EpisodeLog) -> None:
            nonlocal known
            results = [log.results(policy, name) for name in names]
            now = sum(map(len, results))
            plain = results[0].values()
            note = f"success {sum(episode.success for episode in plain) / len(plain):.0%}" if plain else ""
            advance(now - known, note)
            known = now

        most = evaluation.rounds[-1] * len(names)
        title = f"Up to {most} episodes: {evaluation.rounds[-1]} in each of {len(names)} conditions, as far as the time allows"
        with progress_bar(most, "episodes", first=title, console=console) as advance:
            play_shards(evaluation, processes, log, show_progress)
        n_episodes = min(_count_consecutive(log, policy, name) for name in names)
        console.print(f"{n_episodes} episodes in each of {len(names)} conditions were played")
        loaded = LocalPolicy(*load_policy(evaluation.checkpoint, device="cpu"))
        facts = {policy: {key: getattr(loaded.config, key, None) for key in FACTS}}
        results = collect([policy], names, log, n_episodes, evaluation.seed, facts)
        announce("Filming some of them …")
        with one_thread():
            return results, showcase(loaded, envs, results[policy], conditions, FILMED)


def _count_consecutive(log: EpisodeLog, policy: str, condition: str) -> int:
    """Return the number of consecutive finished episodes, counted from the first."""
    there = log.results(policy, condition)
    return next(number for number in range(len(there) + 1) if number not in there)

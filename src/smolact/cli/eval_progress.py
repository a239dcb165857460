"""Progress of `smolact eval`: finished episodes, and the success rate of each condition."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from smolact.cli.progress import Advance, progress_bar

if TYPE_CHECKING:
    from smolact.evaluation.metrics import EpisodeResult
    from smolact.evaluation.suite import EpisodeLog


class EvalProgress:
    """Prints the number of episodes, this process's progress, and each condition's success rate."""

    def __init__(
        self,
        policies: Sequence[str],
        conditions: Sequence[str],
        n_episodes: int,
        log: EpisodeLog,
        stack: contextlib.ExitStack,
    ) -> None:
        self.policies = policies
        played = [log.results(policy, condition) for policy in self.policies for condition in conditions]
        own_episodes = range(log.shard.rank, n_episodes, log.shard.processes)
        done = sum(index in results for results in played for index in own_episodes)
        self.is_complete = done == len(own_episodes) * len(played)
        self.advance: Advance = stack.enter_context(
            progress_bar(
                len(own_episodes) * len(played),
                "episodes",
                done=done,
                first=_plan_text(n_episodes, len(policies), len(conditions), played, log.shard.processes),
            )
        )
        self.outcomes: dict[tuple[str, str], list[bool]] = {}
        self.conditions = conditions
        self.known = sum(map(len, played))

    def reread(self, log: EpisodeLog) -> None:
        """Update the progress from the log, which other processes write."""
        results = {
            (policy, condition): log.results(policy, condition)
            for policy in self.policies
            for condition in self.conditions
        }
        now = sum(map(len, results.values()))
        self.outcomes = {key: [result.success for result in row.values()] for key, row in results.items()}
        last = [key for key, row in results.items() if row]
        self.advance(now - self.known, self._note(*last[-1]) if last else "")
        self.known = now

    def on_episode(self, policy: str, condition: str, result: EpisodeResult) -> None:
        """Count a finished episode."""
        self.outcomes.setdefault((policy, condition), []).append(result.success)
        self.advance(1, self._note(policy, condition))

    def on_step(self, policy: str, condition: str, episodes: int, step: int) -> None:
        """Show the step of `episodes` parallel episodes."""
        self.advance(0, f"{self._note(policy, condition)}, {episodes} at step {step}")

    def _note(self, policy: str, condition: str) -> str:
        which = f"policy {self.policies.index(policy) + 1}, " if len(self.policies) > 1 else ""
        outcomes = self.outcomes.get((policy, condition))
        success = f": success {sum(outcomes) / len(outcomes):.0%}" if outcomes else ""
        return f"{which}{condition.replace('_', ' ')}{success}"


def _plan_text(
    each: int,
    policies: int,
    conditions: int,
    played: Sequence[Mapping[int, EpisodeResult]],
    processes: int,
) -> str:
    """Return the first line of the output: "120 episodes: 20 in each of 6 conditions …"."""
    where = [f"in each of {conditions} conditions"] * (conditions > 1)
    where += [f"with each of {policies} policies"] * (policies > 1)
    done = sum(index < each for results in played for index in results)
    return "".join(
        (
            f"{each * len(played)} episodes",
            f": {each} {' '.join(where)}" if where else "",
            f" (--language=false: {each} in 1)" if conditions > 1 else "",
            f"; {done} of them were played before" if done else "",
            f"; {processes} processes share them" if processes > 1 else "",
        )
    )

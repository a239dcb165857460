"""What an evaluation found, as numbers that can be quoted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from math import comb, isnan, sqrt
from statistics import NormalDist, fmean
from typing import Any

from smolact.errors import ConfigError


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """The interval, within [0, 1], that holds the true success rate with the given confidence.

    Unlike the normal approximation it stays honest near 0 and 1 and for few trials. Without trials it is (0, 1).
    Source: E. B. Wilson, 1927, "Probable inference, the law of succession, and statistical inference".

    Raises:
        ConfigError: successes outside of [0, trials], or confidence outside of (0, 1).
    """
    if not 0 <= successes <= trials or not 0.0 < confidence < 1.0:
        raise ConfigError(
            f"No interval for {successes} successes in {trials} trials at confidence {confidence}: "
            "expected 0 <= successes <= trials and 0 < confidence < 1."
        )
    if trials == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    rate = successes / trials
    centre = rate + z * z / (2 * trials)
    spread = z * sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    # Rounding must not take the ends away from 0 and 1, where they belong when nothing or everything succeeded.
    low = 0.0 if successes == 0 else (centre - spread) / scale
    high = 1.0 if successes == trials else (centre + spread) / scale
    return low, high


@dataclass(frozen=True)
class SuccessRate:
    """How many of some episodes succeeded."""

    successes: int
    episodes: int

    @classmethod
    def of(cls, outcomes: Iterable[bool]) -> SuccessRate:
        """Count them."""
        counted = list(outcomes)
        return cls(sum(counted), len(counted))

    @property
    def rate(self) -> float:
        """In [0, 1]; not a number without episodes."""
        return self.successes / self.episodes if self.episodes else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's, at 95%."""
        return wilson_interval(self.successes, self.episodes)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.rate:.0%} ({self.successes} of {self.episodes}; 95% between {low:.0%} and {high:.0%})"

    def to_dict(self) -> dict[str, Any]:
        """For `metrics.json`."""
        return {
            "success_rate": self.rate,
            "confidence_interval": list(self.interval),
            "successes": self.successes,
            "episodes": self.episodes,
        }


@dataclass(frozen=True)
class EpisodeResult:
    """One episode of a policy.

    Attributes:
        index: its number in the evaluation.
        seed: of the environment: `reset(seed=seed)` shows the same scene again.
        task: the instruction that the policy was given.
        task_kind: what the environment calls tasks of this kind; the instruction itself where it has no name for it.
        success: whether the goal was reached, at any step.
        steps: control steps that it took.
        reward: their rewards' sum.
        video: the file that shows it, if one was made.
        other_task, other_goal_reached: another goal that was watched, and whether it was reached; None where none was.
        max_reward: the largest reward of a step; None in files of versions that did not keep it. For PushT it is the share of
            the target that was covered at best, in units of the 95% that count as success, and 1 at most.
    """

    index: int
    seed: int
    task: str
    task_kind: str
    success: bool
    steps: int
    reward: float
    video: str | None = None
    other_task: str | None = None
    other_goal_reached: bool | None = None
    max_reward: float | None = None


@dataclass(frozen=True)
class EvaluationResult:
    """A policy's episodes in one environment.

    Attributes:
        seed: of the evaluation.
        n_action_steps, chunk_size: how many actions of each predicted chunk were carried out, and how many it has; None
            for a policy that does not say.
        num_steps: denoising steps a chunk; None for a policy that has none.
        condition: how the episodes were told what to do (`conditions.py`).
        seconds: it took.
        results: in the order of their index.
    """

    seed: int
    n_action_steps: int | None
    chunk_size: int | None
    seconds: float
    results: tuple[EpisodeResult, ...]
    num_steps: int | None = None
    condition: str = "as_asked"

    @property
    def other_goal(self) -> SuccessRate | None:
        """How often the other goal was reached that was watched; None where none was."""
        watched = [
            result.other_goal_reached for result in self.results if result.other_goal_reached is not None
        ]
        return SuccessRate.of(watched) if watched else None

    @property
    def success(self) -> SuccessRate:
        """Over all episodes."""
        return SuccessRate.of(result.success for result in self.results)

    @property
    def per_task(self) -> dict[str, SuccessRate]:
        """For each kind of task."""
        kinds = sorted({result.task_kind for result in self.results})
        return {
            kind: SuccessRate.of(result.success for result in self.results if result.task_kind == kind)
            for kind in kinds
        }

    @property
    def mean_steps(self) -> float:
        """Of all episodes, successful or not."""
        return fmean(result.steps for result in self.results) if self.results else float("nan")

    @property
    def mean_max_reward(self) -> float:
        """Of each episode the largest reward of a step, and their mean; not a number where they were not kept."""
        kept = [result.max_reward for result in self.results if result.max_reward is not None]
        return fmean(kept) if kept else float("nan")

    def to_dict(self) -> dict[str, Any]:
        """For `metrics.json`."""
        return {
            **self.success.to_dict(),
            "per_task": {kind: rate.to_dict() for kind, rate in self.per_task.items()},
            **({"other_goal": self.other_goal.to_dict()} if self.other_goal else {}),
            "condition": self.condition,
            "mean_steps": self.mean_steps,
            "mean_max_reward": None if isnan(self.mean_max_reward) else self.mean_max_reward,
            "n_action_steps": self.n_action_steps,
            "chunk_size": self.chunk_size,
            "num_steps": self.num_steps,
            "seed": self.seed,
            "seconds": self.seconds,
            "results": [asdict(result) for result in self.results],
        }


@dataclass(frozen=True)
class Comparison:
    """Two policies in the same episodes.

    Attributes:
        only_first, only_second: episodes in which one of them succeeded and the other did not.
        both, neither: the rest.
    """

    only_first: int
    only_second: int
    both: int
    neither: int

    @classmethod
    def of(cls, first: EvaluationResult, second: EvaluationResult) -> Comparison:
        """Pair the episodes by index.

        Raises:
            ConfigError: they are not the same episodes.
        """
        episodes = [[(one.index, one.seed) for one in result.results] for result in (first, second)]
        if episodes[0] != episodes[1]:
            raise ConfigError(
                "Only evaluations of the same episodes can be compared: give both the same seed and number."
            )
        pairs = [(a.success, b.success) for a, b in zip(first.results, second.results, strict=True)]
        return cls(
            *(pairs.count(pair) for pair in ((True, False), (False, True), (True, True), (False, False)))
        )

    @property
    def difference(self) -> float:
        """The second's success rate less the first's."""
        total = self.only_first + self.only_second + self.both + self.neither
        return (self.only_second - self.only_first) / total if total else float("nan")

    @property
    def p_value(self) -> float:
        """How likely so uneven a split is if neither is better: McNemar's test in its exact form (a binomial test).

        Source: Q. McNemar, 1947, "Note on the sampling error of the difference between correlated proportions".
        """
        uneven = self.only_first + self.only_second
        fewer = min(self.only_first, self.only_second)
        tail: float = sum(comb(uneven, count) for count in range(fewer + 1)) / 2**uneven
        return min(1.0, 2 * tail)

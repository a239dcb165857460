"""Metrics of an evaluation: success rates with confidence intervals, episode results, and paired comparisons."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from math import comb, isnan, sqrt
from statistics import NormalDist, fmean
from typing import Any

from smolact.errors import ConfigError


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return Wilson's confidence interval of a success rate, within [0, 1]; (0, 1) without trials.

    Unlike the normal approximation it is accurate near 0 and 1 and for few trials.
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
    # Without successes the lower end is exactly 0, without failures the upper end is exactly 1, despite rounding.
    low = 0.0 if successes == 0 else (centre - spread) / scale
    high = 1.0 if successes == trials else (centre + spread) / scale
    return low, high


@dataclass(frozen=True)
class SuccessRate:
    """The number of successful episodes, and of all episodes."""

    successes: int
    episodes: int

    @classmethod
    def of(cls, outcomes: Iterable[bool]) -> SuccessRate:
        """Count the outcomes that are True."""
        counted = list(outcomes)
        return cls(sum(counted), len(counted))

    @property
    def rate(self) -> float:
        """The success rate in [0, 1]; NaN without episodes."""
        return self.successes / self.episodes if self.episodes else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's interval at 95% confidence."""
        return wilson_interval(self.successes, self.episodes)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.rate:.0%} ({self.successes} of {self.episodes}; 95% between {low:.0%} and {high:.0%})"

    def to_dict(self) -> dict[str, Any]:
        """Return the entry for `metrics.json`."""
        return {
            "success_rate": self.rate,
            "confidence_interval": list(self.interval),
            "successes": self.successes,
            "episodes": self.episodes,
        }


@dataclass(frozen=True)
class EpisodeResult:
    """The result of one episode.

    Attributes:
        seed: the environment's seed: `reset(seed=seed)` restores the scene.
        task_kind: the environment's name for this kind of task, or the instruction if it has none.
        success: whether the goal was reached, at any step.
        other_task, other_goal_reached: the second goal that was checked, and whether it was reached; None without one.
        max_reward: the largest reward of a step; None in files of old versions. For PushT it is the largest covered share of
            the target, divided by the 95% that count as success, and at most 1.
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
        n_action_steps, chunk_size: the executed actions of each predicted chunk, and all of them; None if unknown.
        num_steps: the denoising steps of a chunk; None without denoising.
        condition: the name of the episodes' condition (`conditions.py`).
        results: the episodes in the order of their index.
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
        """The success rate of the second goals that were checked; None without any."""
        outcomes = [
            result.other_goal_reached for result in self.results if result.other_goal_reached is not None
        ]
        return SuccessRate.of(outcomes) if outcomes else None

    @property
    def success(self) -> SuccessRate:
        """The success rate over all episodes."""
        return SuccessRate.of(result.success for result in self.results)

    @property
    def per_task(self) -> dict[str, SuccessRate]:
        """The success rate of each kind of task."""
        kinds = sorted({result.task_kind for result in self.results})
        return {
            kind: SuccessRate.of(result.success for result in self.results if result.task_kind == kind)
            for kind in kinds
        }

    @property
    def mean_steps(self) -> float:
        """The mean number of steps over all episodes, successful or not."""
        return fmean(result.steps for result in self.results) if self.results else float("nan")

    @property
    def mean_max_reward(self) -> float:
        """The mean of the episodes' largest rewards; NaN if they were not stored."""
        rewards = [result.max_reward for result in self.results if result.max_reward is not None]
        return fmean(rewards) if rewards else float("nan")

    def to_dict(self) -> dict[str, Any]:
        """Return the content of `metrics.json`."""
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
    """Paired comparison of two policies in the same episodes.

    Attributes:
        only_first, only_second: the number of episodes in which only the first or only the second policy succeeded.
        both, neither: the number of episodes in which both or neither succeeded.
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
        episodes = [[(item.index, item.seed) for item in result.results] for result in (first, second)]
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
        """The second policy's success rate minus the first's."""
        total = self.only_first + self.only_second + self.both + self.neither
        return (self.only_second - self.only_first) / total if total else float("nan")

    @property
    def p_value(self) -> float:
        """The p-value of McNemar's exact test (a two-sided binomial test): the probability of such a split if neither is better.

        Source: Q. McNemar, 1947, "Note on the sampling error of the difference between correlated proportions".
        """
        uneven = self.only_first + self.only_second
        fewer = min(self.only_first, self.only_second)
        tail: float = sum(comb(uneven, count) for count in range(fewer + 1)) / 2**uneven
        return min(1.0, 2 * tail)

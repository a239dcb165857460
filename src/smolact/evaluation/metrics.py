"""Metrics of an evaluation: success rates with confidence intervals, episode results, and paired comparisons."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from math import comb, isnan, sqrt
from statistics import NormalDist, fmean
from typing import Any

from smolact.errors import ConfigError


def wilson_interval(successes: float, trials: float, confidence: float = 0.95) -> tuple[float, float]:
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


def clustered_interval(clusters: Sequence[SuccessRate], confidence: float = 0.95) -> tuple[float, float]:
    """Return the confidence interval of the success rate over all clusters, such as the tasks of a benchmark.

    Episodes of one task succeed or fail together, so they tell less than as many of different tasks. Wilson's interval is taken
    for the number of independent episodes that would vary as much, corrected for the small number of clusters.
    Source: E. Korn, B. Graubard, 1998, "Confidence intervals for proportions with small expected number of positive counts
    estimated from survey data".

    Raises:
        ConfigError: there are fewer than two clusters.
    """
    count, trials = len(clusters), sum(cluster.episodes for cluster in clusters)
    if count < 2:
        raise ConfigError(f"An interval over clusters needs two of them at least, and there are {count}.")
    rate = sum(cluster.successes for cluster in clusters) / trials
    residuals = [cluster.successes - rate * cluster.episodes for cluster in clusters]
    variance = count / (count - 1) * sum(residual**2 for residual in residuals) / trials**2
    effective = trials if variance == 0 else min(trials, rate * (1 - rate) / variance)
    effective *= (_student(trials - 1, confidence) / _student(count - 1, confidence)) ** 2
    return wilson_interval(rate * effective, effective, confidence)


def _student(degrees: int, confidence: float) -> float:
    """Return the two-sided quantile of Student's distribution, to 1% from three degrees of freedom on (Fisher and Cornish 1960)."""
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    quantile: float = z + sum(term / degrees**power for power, term in enumerate(terms, 1))
    return quantile


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
        task_group: the group or suite of a benchmark that the task belongs to.
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
    task_group: str | None = None


@dataclass(frozen=True)
class TaskGroup:
    """The success rates of several tasks of a benchmark."""

    tasks: tuple[SuccessRate, ...]

    @property
    def success(self) -> SuccessRate:
        """The success rate over all episodes."""
        return SuccessRate(
            sum(task.successes for task in self.tasks), sum(task.episodes for task in self.tasks)
        )

    @property
    def interval(self) -> tuple[float, float]:
        """The interval at 95% confidence, with tasks as clusters; of a single task Wilson's."""
        return clustered_interval(self.tasks) if len(self.tasks) > 1 else self.success.interval

    def __str__(self) -> str:
        if len(self.tasks) == 1:
            return str(self.success)
        success, (low, high) = self.success, self.interval
        return (
            f"{success.rate:.0%} ({success.successes} of {success.episodes}, {len(self.tasks)} tasks; 95% between {low:.0%} and "
            f"{high:.0%})"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the entry for `metrics.json`."""
        return {
            **self.success.to_dict(),
            "tasks": len(self.tasks),
            "confidence_interval": list(self.interval),
        }


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
    def per_group(self) -> dict[str, TaskGroup]:
        """The tasks of each group of a benchmark; empty for other environments."""
        groups: dict[str, dict[str, list[bool]]] = {}
        for result in self.results:
            if result.task_group is not None:
                groups.setdefault(result.task_group, {}).setdefault(result.task_kind, []).append(
                    result.success
                )
        return {
            group: TaskGroup(tuple(map(SuccessRate.of, tasks.values()))) for group, tasks in groups.items()
        }

    @property
    def over_tasks(self) -> TaskGroup | None:
        """All tasks of a benchmark; None for other environments."""
        groups = self.per_group.values()
        return TaskGroup(tuple(task for group in groups for task in group.tasks)) if groups else None

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
        groups = self.per_group
        return {
            **self.success.to_dict(),
            "per_task": {kind: rate.to_dict() for kind, rate in self.per_task.items()},
            **({"over_tasks": self.over_tasks.to_dict()} if self.over_tasks else {}),
            **({"per_group": {name: group.to_dict() for name, group in groups.items()}} if groups else {}),
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

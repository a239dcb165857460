"""What an evaluation found, as numbers that can be quoted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from math import sqrt
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
    """

    index: int
    seed: int
    task: str
    task_kind: str
    success: bool
    steps: int
    reward: float
    video: str | None = None


@dataclass(frozen=True)
class EvaluationResult:
    """A policy's episodes in one environment.

    Attributes:
        seed: of the evaluation.
        n_action_steps, chunk_size: how many actions of each predicted chunk were carried out, and how many it has; None
            for a policy that does not say.
        seconds: it took.
        results: in the order of their index.
    """

    seed: int
    n_action_steps: int | None
    chunk_size: int | None
    seconds: float
    results: tuple[EpisodeResult, ...]

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

    def to_dict(self) -> dict[str, Any]:
        """For `metrics.json`."""
        return {
            **self.success.to_dict(),
            "per_task": {kind: rate.to_dict() for kind, rate in self.per_task.items()},
            "mean_steps": self.mean_steps,
            "n_action_steps": self.n_action_steps,
            "chunk_size": self.chunk_size,
            "seed": self.seed,
            "seconds": self.seconds,
            "results": [asdict(result) for result in self.results],
        }

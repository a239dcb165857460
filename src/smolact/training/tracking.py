"""Training events, and `metrics.jsonl`, the listener that records them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smolact import durable
from smolact.files import read_bytes

METRICS = "metrics.jsonl"


@dataclass(frozen=True)
class Started:
    """Sent before the first step."""

    run: Path
    step: int
    steps: int
    """Number of steps, unless the run is timed."""
    facts: Mapping[str, str]
    """Facts for the user, name to value: dataset, weights, parameters, device, …"""
    features: str = ""
    """A table of the policy's features and the matching ones of the dataset."""
    minutes: float | None = None
    """Duration of a timed run."""


@dataclass(frozen=True)
class Prepared:
    """Sent during a preparation before the first step: name, finished amount and total."""

    what: str
    done: int
    of: int


@dataclass(frozen=True)
class Stepped:
    """Sent after every step, without synchronizing with the device."""

    step: int
    seconds_left: float | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Measured:
    """Sent after every `log_freq` steps, with means since the last one."""

    step: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Evaluated:
    """Sent after an evaluation in the environment."""

    step: int
    metrics: Mapping[str, float]
    result: Any


@dataclass(frozen=True)
class Saved:
    """Sent after a checkpoint was committed."""

    step: int
    checkpoint: Path


@dataclass(frozen=True)
class Ended:
    """Sent after the last step, or after a signal stopped the run before it."""

    step: int
    checkpoint: Path | None
    is_complete: bool
    data_wait: float | None = field(default=None, compare=False)
    """Share of the steps' time spent waiting for data; None without a step."""
    is_stopped: bool = False
    """Whether a signal stopped the run; in the last step, the run is complete nevertheless."""
    has_readers: bool = field(default=True, compare=False)
    """Whether `--num_workers` processes read the data; processes that share each step read their own."""


@dataclass(frozen=True)
class Failed:
    """Sent when an error ends the run, with its message; the error itself is raised."""

    step: int
    message: str


Event = Prepared | Started | Stepped | Measured | Evaluated | Saved | Ended | Failed
Listener = Callable[[Event], None]


class MetricsFile:
    """`metrics.jsonl`: a line for every measurement and evaluation.

    Args:
        step: where training resumes; lines of later steps, which are repeated, are removed.

    Raises:
        WriteError: the disk is full or refused. A run does not continue without its metrics.
    """

    def __init__(self, run: Path, step: int = 0) -> None:
        self.path = run / METRICS
        if self.path.exists():
            with durable.annotate_errors(self.path):
                lines = read_bytes(self.path).decode(errors="replace").split("\n")
            durable.write_text(self.path, "".join(f"{line}\n" for line in lines if _step_of(line) <= step))

    def __call__(self, event: Event) -> None:
        """Write the event, if it contains metrics."""
        if isinstance(event, Measured | Evaluated):
            prefix = "eval/" if isinstance(event, Evaluated) else ""
            line = {"step": event.step, **{prefix + name: value for name, value in event.metrics.items()}}
            with durable.annotate_errors(self.path), self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # the partial last line of a killed run
        return float("inf")


MAX_VIDEOS = 3
"""Maximum number of an evaluation's videos in trackers."""


def videos(event: Measured | Evaluated) -> dict[str, str]:
    """Return an evaluation's first videos: name in trackers (`eval/episode_000`) to path."""
    episodes = getattr(event.result, "results", ()) if isinstance(event, Evaluated) else ()
    recorded = [episode for episode in episodes if episode.video]
    return {f"eval/episode_{episode.index:03d}": str(episode.video) for episode in recorded[:MAX_VIDEOS]}


def scalars(event: Measured | Evaluated) -> dict[str, float]:
    """Return the event's metrics by their names in trackers: `train/loss`, `eval/success_rate`."""
    kind = "train" if isinstance(event, Measured) else "eval"
    return {f"{kind}/{name}": value for name, value in event.metrics.items()}

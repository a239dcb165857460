"""What a run tells while it goes: events for whoever listens, `metrics.jsonl` always, other trackers by their flags."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smolact import durable
from smolact.errors import optional_import
from smolact.files import read_bytes
from smolact.training.sections import TrackioSection, WandBSection

METRICS = "metrics.jsonl"


@dataclass(frozen=True)
class Started:
    """Before the first step."""

    run: Path
    step: int
    steps: int
    """How many the run takes, unless it goes by the clock."""
    facts: Mapping[str, str]
    """What to tell the user, name to value: dataset, weights, parameters, device, …"""
    features: str = ""
    """A table: what the policy expects, and what of the dataset it gets for that."""
    minutes: float | None = None
    """How long a run by the clock takes."""


@dataclass(frozen=True)
class Prepared:
    """While something is made that the first step needs: what, and how much of how much."""

    what: str
    done: int
    of: int


@dataclass(frozen=True)
class Stepped:
    """After every step; nothing is read from the device for it."""

    step: int
    seconds_left: float | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Measured:
    """After every `log_freq` steps: means since the last one."""

    step: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Evaluated:
    """After an evaluation in the environment."""

    step: int
    metrics: Mapping[str, float]
    result: Any


@dataclass(frozen=True)
class Saved:
    """After a checkpoint was committed."""

    step: int
    checkpoint: Path


@dataclass(frozen=True)
class Ended:
    """After the last step, or after a signal stopped the run before it."""

    step: int
    checkpoint: Path | None
    is_complete: bool
    data_wait: float | None = field(default=None, compare=False)
    """The share of the steps' time that went by waiting for data; None where none was made."""
    is_stopped: bool = False
    """Whether a signal asked to stop; it may have come in the last step, so that the run is complete nevertheless."""
    has_readers: bool = field(default=True, compare=False)
    """Whether `--num_workers` read the data; where processes share each step, they read their own."""


@dataclass(frozen=True)
class Failed:
    """When an error ends the run: its message; the error itself goes on to the caller."""

    step: int
    message: str


Event = Prepared | Started | Stepped | Measured | Evaluated | Saved | Ended | Failed
Listener = Callable[[Event], None]


class MetricsFile:
    """`metrics.jsonl`: a line for every measurement and evaluation.

    Args:
        run: the run's folder.
        step: where the run goes on; lines after it, of steps that are done again, are dropped.

    Raises:
        WriteError: the disk is full or refused. A run without a record of itself does not go on.
    """

    def __init__(self, run: Path, step: int = 0) -> None:
        self.path = run / METRICS
        if self.path.exists():
            with durable.annotate_errors(self.path):
                lines = read_bytes(self.path).decode(errors="replace").split("\n")
            durable.write_text(self.path, "".join(f"{line}\n" for line in lines if _step_of(line) <= step))

    def __call__(self, event: Event) -> None:
        """Write the event, if it has numbers."""
        if isinstance(event, Measured | Evaluated):
            prefix = "eval/" if isinstance(event, Evaluated) else ""
            line = {"step": event.step, **{prefix + name: value for name, value in event.metrics.items()}}
            with durable.annotate_errors(self.path), self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # the last line of a run that was killed while it wrote it
        return float("inf")


MAX_FILMS = 3
"""Films of an evaluation that trackers show."""


def videos(event: Measured | Evaluated) -> dict[str, str]:
    """The first episodes of an evaluation that were filmed, as trackers name them: `eval/episode_000` to the video's path."""
    episodes = getattr(event.result, "results", ()) if isinstance(event, Evaluated) else ()
    filmed = [episode for episode in episodes if episode.video]
    return {f"eval/episode_{episode.index:03d}": str(episode.video) for episode in filmed[:MAX_FILMS]}


def scalars(event: Measured | Evaluated) -> dict[str, float]:
    """The event's numbers as trackers name them: `train/loss`, `eval/success_rate`."""
    kind = "train" if isinstance(event, Measured) else "eval"
    return {f"{kind}/{name}": value for name, value in event.metrics.items()}


class WandBTracker:
    """Measurements and evaluations in Weights & Biases.

    Raises:
        MissingDependencyError: the package wandb is not installed.
    """

    def __init__(
        self, section: WandBSection, run: Path, name: str, settings: Mapping[str, Any], tags: list[str]
    ) -> None:
        wandb = optional_import("wandb", "wandb")
        self._video = wandb.Video
        self._run = wandb.init(
            project=section.project,
            entity=section.entity,
            name=name,
            notes=section.notes,
            id=section.run_id,
            resume="allow" if section.run_id else None,
            mode=section.mode,
            dir=str(run),
            config=dict(settings),
            tags=tags if section.add_tags else None,
        )

    def __call__(self, event: Event) -> None:
        """Log the event, if it has numbers; close the run at the end."""
        if isinstance(event, Measured | Evaluated):
            shown = {name: self._video(path, format="mp4") for name, path in videos(event).items()}
            self._run.log({**scalars(event), **shown}, step=event.step)
        elif isinstance(event, Ended | Failed):
            self._run.finish(exit_code=int(isinstance(event, Failed)))


class TrackioTracker:
    """Measurements and evaluations in trackio: a dashboard on this machine (`trackio show`), or a Space on the Hub.

    Raises:
        MissingDependencyError: the package trackio is not installed.
    """

    def __init__(self, section: TrackioSection, run: Path, settings: Mapping[str, Any]) -> None:
        trackio = optional_import("trackio", "trackio")
        self._video = trackio.Video
        self._run = trackio.init(
            project=section.project,
            name=run.resolve().name,
            space_id=section.space_id,
            config=dict(settings),
            resume="allow",  # a run that goes on is found by its name
        )

    def __call__(self, event: Event) -> None:
        """Log the event, if it has numbers; close the run at the end."""
        if isinstance(event, Measured | Evaluated):
            shown = {name: self._video(path) for name, path in videos(event).items()}
            self._run.log({**scalars(event), **shown}, step=event.step)
        elif isinstance(event, Ended | Failed):
            self._run.finish()

"""The trackers (TensorBoard, Weights & Biases, trackio) and the report of a run. Their failure never stops it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from smolact.errors import optional_import
from smolact.training.config import TrainConfig
from smolact.training.sections import TrackioSection, WandBSection
from smolact.training.tracking import (
    METRICS,
    Ended,
    Evaluated,
    Event,
    Failed,
    Listener,
    Measured,
    Started,
    scalars,
    videos,
)

logger = logging.getLogger(__name__)


class BestEffort:
    """An optional listener: its first failure is logged, and it receives no further events."""

    def __init__(self, name: str, listener: Listener) -> None:
        self.name = name
        self._listener: Listener | None = listener

    def __call__(self, event: Event) -> None:
        """Pass the event on, unless the listener has failed."""
        if self._listener is None:
            return
        try:
            self._listener(event)
        except Exception as error:
            self._listener = None
            logger.warning(
                "%s failed and is off from here on (%s: %s). The run goes on; %s has every number.",
                self.name,
                type(error).__name__,
                error,
                METRICS,
            )


def _service(
    log: Callable[..., object], video: Callable[[str], object], finish: Callable[[bool], object]
) -> Listener:
    """Return a listener that logs metrics, and at the end calls `finish` with whether the run failed."""

    def listener(event: Event) -> None:
        if isinstance(event, Measured | Evaluated):
            shown = {name: video(path) for name, path in videos(event).items()}
            log({**scalars(event), **shown}, step=event.step)
        elif isinstance(event, Ended | Failed):
            finish(isinstance(event, Failed))

    return listener


def _wandb(
    section: WandBSection, run: Path, name: str, settings: Mapping[str, Any], tags: list[str]
) -> Listener:
    """Return the tracker for Weights & Biases."""
    wandb = optional_import("wandb", "wandb")
    service = wandb.init(
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
    return _service(
        service.log,
        lambda path: wandb.Video(path, format="mp4"),
        lambda has_failed: service.finish(exit_code=int(has_failed)),
    )


def _trackio(section: TrackioSection, run: Path, settings: Mapping[str, Any]) -> Listener:
    """Return the tracker for trackio: a local dashboard (`trackio show`), or a Space on the Hub."""
    trackio = optional_import("trackio", "trackio")
    service = trackio.init(
        project=section.project,
        name=run.resolve().name,
        space_id=section.space_id,
        config=dict(settings),
        resume="allow",  # a resumed run is found by its name
    )
    return _service(service.log, trackio.Video, lambda has_failed: service.finish())


def make_trackers(
    config: TrainConfig, run: Path, settings: Mapping[str, Any], *, name: str, tags: list[str], step: int = 0
) -> list[Listener]:
    """Return the trackers in the settings, and the report at the end; none of them can stop the run.

    Args:
        run: the run's folder; it need not exist yet.
        step: the step at which training resumes.

    Raises:
        MissingDependencyError: the package of a tracker is not installed.
    """
    trackers: list[Listener] = []
    if config.tensorboard.enable:
        from smolact.training.tensorboard import TensorBoardTracker

        trackers.append(BestEffort("TensorBoard", TensorBoardTracker(run, step)))
    if config.wandb.enable:
        trackers.append(BestEffort("Weights & Biases", _wandb(config.wandb, run, name, settings, tags)))
    if config.trackio.enable:
        trackers.append(BestEffort("trackio", _trackio(config.trackio, run, settings)))
    if config.report:
        trackers.append(BestEffort("The report", Report(run, settings)))
    return trackers


class Report:
    """Writes `curves.png` and `report.html` when the run ends."""

    def __init__(self, run: Path, settings: Mapping[str, Any]) -> None:
        self.run, self.settings = run, settings
        self._facts: dict[str, str] = {}

    def __call__(self, event: Event) -> None:
        """Store the facts of the start; write the report at the end."""
        if isinstance(event, Started):
            self._facts = dict(event.facts)
        elif isinstance(event, Ended | Failed):
            from smolact.pages import command_and_versions
            from smolact.training.report import write_report

            end = {"stopped by": f"step {event.step}: {event.message}"} if isinstance(event, Failed) else {}
            write_report(self.run, self.settings, {**end, **self._facts, **command_and_versions()})

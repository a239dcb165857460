"""Recording: the control loop's observations and actions as frames, and every finished episode on disk.

    observation -> action of a teleoperator or policy -> robot -> frame -> queue -> encoding thread -> disk

A row holds an observation and the action that was sent because of it. Nothing in the loop waits for the disk. If encoding can't
follow and its queue is full, the whole row is left out, which is counted and logged; so every camera has as many frames as there are
rows.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from smolact.datasets.checks import AXES
from smolact.datasets.format import UNITS, Feature
from smolact.datasets.writer import DatasetWriter
from smolact.errors import ConfigError, FeatureError, RobotError, SmolactError
from smolact.recording.encoding import QUEUE_BYTES, EncodingThread
from smolact.recording.log import EpisodeReport, RecordingLog
from smolact.recording.plan import RecordingPlan
from smolact.robots.base import EpisodicRobot, Observation, Robot, RobotFeatures, gate_of
from smolact.runtime.controls import ControlCommand, Controls
from smolact.runtime.loop import ActionSource, CameraTimeoutError, ControlLoop, NoSource
from smolact.runtime.rate_limiter import Timing
from smolact.types import ACTION

logger = logging.getLogger(__name__)

SHOW_EVERY = 0.1


@runtime_checkable
class AcceptsInstruction(Protocol):
    """A source of actions whose instruction may change within an episode."""

    current_instruction: str
    """The instruction of the action that it gave last."""


@dataclass(frozen=True)
class Status:
    """Where an episode is, for a display: its number, frames so far, the rate, what waits and what was left out."""

    episode: int
    task: str
    frames: int
    timing: Timing
    waiting_bytes: int
    dropped: int
    paused: bool
    observation: Observation
    action: NDArray[Any] | None


@dataclass
class _Kept:
    """Of an episode: frames that are kept, and that could not be."""

    frames: int = 0
    dropped: int = 0


@dataclass(frozen=True)
class _Played:
    command: ControlCommand | None
    frames: int
    dropped: int
    timing: Timing


class _Saving(NamedTuple):
    """An episode on its way to the disk; `times` are those of its end and, when it is there, of that."""

    number: int
    task: str
    played: _Played
    saved: Future[None]
    times: list[float]
    success: bool | None


def dataset_features(robot: RobotFeatures, *, video: bool = True) -> dict[str, Feature]:
    """The features of a dataset of this robot."""
    cameras = {
        key: Feature("video" if video else "image", (*size, 3), list(AXES))
        for key, size in robot.cameras.items()
    }
    vectors = {
        key: Feature(
            "float32",
            (len(names),),
            list(names),
            {UNITS: list(robot.units[key])} if key in robot.units else {},
        )
        for key, names in {**robot.vectors, ACTION: robot.action}.items()
    }
    return {**cameras, **vectors}


class Recorder:
    """Records episodes of a connected robot.

    Args:
        robot: connected. An `EpisodicRobot` sets its scene back by itself, and may end an episode.
        source: of the actions.
        writer: where frames go; with `episodes_per_file=1`, so that every finished episode is there for good.
        plan: what to record.
        controls: what a person says meanwhile.
        on_tick: is shown where recording is, ten times a second, in the loop: it should be quick.
        on_episode: is told of every episode that is on disk, when it is.
        on_failure: is told what ends the recording when it happens, before the encoder is waited for.
        queue_bytes: how much may wait for its encoding.
        keep_unfinished: an episode that an error or Ctrl-C ends is kept up to there, as one is whose camera died.
        clock, sleep: for the pace.

    Raises:
        RobotError: the robot has no gate.
    """

    def __init__(
        self,
        robot: Robot,
        source: ActionSource,
        writer: DatasetWriter,
        plan: RecordingPlan,
        *,
        controls: Controls | None = None,
        on_tick: Callable[[Status], None] | None = None,
        on_episode: Callable[[EpisodeReport], None] | None = None,
        on_failure: Callable[[BaseException], None] = lambda error: None,
        queue_bytes: int = QUEUE_BYTES,
        keep_unfinished: bool = False,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        gate_of(robot)
        self._robot, self._source, self._writer, self._plan = robot, source, writer, plan
        self._controls = controls or Controls()
        self._on_tick, self._on_episode, self._on_failure = on_tick, on_episode, on_failure
        self._queue_bytes, self._clock, self._sleep = queue_bytes, clock, sleep
        self._keep_unfinished = keep_unfinished
        self._next_show = 0.0
        self._ended_by: BaseException | None = None
        self._saving: _Saving | None = None
        self._reports: list[EpisodeReport] = []
        self._log = RecordingLog(writer.root, writer.num_episodes)

    def run(self) -> list[EpisodeReport]:
        """Record until the plan is done or somebody says stop; returns a report for each episode.

        Whatever is raised, every episode that was reported is on disk; the one at hand is given up, unless it is to be kept.

        Raises:
            ConfigError: there is no task.
            RobotError: the robot or teleoperator failed, or a camera died; then the episode up to there is kept.
            WriteError: the disk is full or refused.
            FeatureError: a frame does not fit the dataset.
        """
        reports = self._reports = []
        encoding = EncodingThread(self._writer, self._queue_bytes, wait=not self._plan.realtime)
        try:
            command: ControlCommand | None
            while len(reports) < self._plan.num_episodes:
                number = self._writer.num_episodes
                task = self._begin(number)
                played = self._play(number, task, encoding)
                if played.command is ControlCommand.REDO or not played.frames:
                    encoding.discard()
                    if self._ended_by is not None:
                        raise self._ended_by
                    if played.command is ControlCommand.STOP:
                        break
                    logger.info("Episode %d is thrown away, and recorded again.", number)
                    if self._reset_scene() is ControlCommand.STOP:
                        break
                    continue
                saved, ready = encoding.save(), [self._clock()]
                saved.add_done_callback(lambda _, times=ready: times.append(self._clock()))  # type: ignore[misc]
                success = self._robot.is_success if isinstance(self._robot, EpisodicRobot) else None
                self._saving = _Saving(number, task, played, saved, ready, success)
                command = played.command
                if command is not ControlCommand.STOP and len(reports) + 1 < self._plan.num_episodes:
                    command = self._reset_scene()
                self._settle(wait=True)
                if command is ControlCommand.STOP:
                    break
            if self._ended_by is not None:
                raise self._ended_by
        except BaseException as error:
            self._on_failure(error)
            raise
        finally:
            encoding.close()
        return reports

    def _settle(self, *, wait: bool) -> None:
        """Report the episode that is being saved, if it is on disk; its error is raised as soon as it is known."""
        saving = self._saving
        if saving is None or not (wait or saving.saved.done()):
            return
        self._saving = None
        saving.saved.result()
        played = saving.played
        report = EpisodeReport(
            saving.number,
            saving.task,
            played.frames,
            self._plan.fps,
            played.timing if self._plan.realtime else None,
            played.dropped,
            saving.times[-1] - saving.times[0],
            saving.success,
        )
        self._log.add(report)
        self._reports.append(report)
        if self._on_episode is not None:
            self._on_episode(report)

    def _begin(self, number: int) -> str:
        asked = self._robot.reset(number) if isinstance(self._robot, EpisodicRobot) else None
        task = self._plan.task if self._plan.task is not None else asked
        if task is None:
            raise ConfigError(
                f"The robot '{self._robot.name}' does not say what it is to do: give the instruction that the episodes show, "
                "--dataset.single_task='Pick up the cube.'"
            )
        self._source.begin(task)
        return task

    def _play(self, number: int, task: str, encoding: EncodingThread) -> _Played:
        """One episode; its frames are in the queue."""
        loop = self._loop(realtime=self._plan.realtime)
        kept = _Kept()
        most = max(1, round(self._plan.episode_time_s * self._plan.fps))

        def on_tick(observation: Observation, action: NDArray[Any] | None) -> None:
            nonlocal task
            if action is not None:
                if isinstance(self._source, AcceptsInstruction):
                    task = self._source.current_instruction
                if encoding.add(self._frame(observation, action), task):
                    kept.frames += 1
                else:
                    kept.dropped += 1
                    if kept.dropped == 1:
                        logger.warning("Encoding can't follow: frames of episode %d are left out.", number)
            self._show(number, task, kept, loop, encoding, observation, action)

        command: ControlCommand | None
        try:
            command = loop.run(
                self._source, lambda: kept.frames + kept.dropped + loop.rate_limiter.missed >= most, on_tick
            )
        except CameraTimeoutError as error:
            command = self._end_without_camera(error)
        except (SmolactError, KeyboardInterrupt) as error:
            if not self._keep_unfinished:
                raise
            self._end_with(error)
            command = ControlCommand.STOP
        return _Played(command, kept.frames, kept.dropped, loop.rate_limiter.timing())

    def _loop(self, *, realtime: bool) -> ControlLoop:
        return ControlLoop(self._robot, self._plan.fps, realtime, self._controls, self._clock, self._sleep)

    def _end_without_camera(self, error: CameraTimeoutError) -> ControlCommand:
        self._end_with(
            RobotError(
                f"{error} The episode ended there, and what was recorded of it is kept. See to its cable, and go on with "
                "--resume=true."
            )
        )
        return ControlCommand.STOP

    def _end_with(self, error: BaseException) -> None:
        """End the episode here, and the recording when it is saved."""
        self._ended_by = error
        self._on_failure(error)

    def _frame(self, observation: Observation, action: NDArray[Any]) -> Mapping[str, NDArray[Any]]:
        features = self._robot.features
        wanted = [*features.vectors, *features.cameras]
        missing = [key for key in wanted if key not in observation]
        if missing:
            raise FeatureError(
                f"The robot '{self._robot.name}' declares {', '.join(missing)} and does not observe it. See to its cameras "
                "and sensors."
            )
        return {**{key: observation[key] for key in wanted}, ACTION: np.asarray(action, np.float32)}

    def _reset_scene(self) -> ControlCommand | None:
        """The time between two episodes, in which a person resets the scene; a simulation needs none."""
        if isinstance(self._robot, EpisodicRobot) or self._plan.reset_time_s == 0:
            return None
        logger.info("Set the scene back (%g s; right arrow: done).", self._plan.reset_time_s)
        loop = self._loop(realtime=True)
        most = round(self._plan.reset_time_s * self._plan.fps)
        drives = self._source.drives_resets
        while True:
            try:
                command = loop.run(
                    self._source if drives else NoSource(),
                    lambda: loop.ticks + loop.rate_limiter.missed >= most,
                    lambda *_: self._settle(wait=False),
                    observes=drives,
                )
            except CameraTimeoutError as error:
                return self._end_without_camera(error)
            if command is not ControlCommand.REDO or loop.ticks + loop.rate_limiter.missed >= most:
                return command

    def _show(
        self,
        number: int,
        task: str,
        kept: _Kept,
        loop: ControlLoop,
        encoding: EncodingThread,
        observation: Observation,
        action: NDArray[Any] | None,
    ) -> None:
        if self._on_tick is not None and self._clock() >= self._next_show:
            self._next_show = self._clock() + SHOW_EVERY
            self._on_tick(
                Status(
                    number,
                    task,
                    kept.frames,
                    loop.rate_limiter.timing(),
                    encoding.waiting_bytes,
                    kept.dropped,
                    action is None,
                    observation,
                    action,
                )
            )

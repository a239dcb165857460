"""Recording: the control loop's observations and actions become frames, and every finished episode is written to disk.

    observation -> action of a teleoperator or policy -> robot -> frame -> queue -> encoding thread -> disk

A frame contains an observation and the action that was sent for it. The loop never waits for the disk. If encoding is too slow and
its queue is full, the whole frame is dropped, counted and logged; so every camera has the same number of frames.
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
from smolact.robots.base import (
    CameraTimeoutError,
    ConnectionLostError,
    EpisodicRobot,
    Observation,
    Robot,
    RobotFeatures,
    gate_of,
)
from smolact.runtime.controls import ControlCommand, Controls
from smolact.runtime.loop import ActionSource, ControlLoop, NoSource
from smolact.runtime.rate_limiter import Timing
from smolact.types import ACTION, INTERVENTION

logger = logging.getLogger(__name__)

SHOW_INTERVAL_S = 0.1


@runtime_checkable
class AcceptsInstruction(Protocol):
    """A source of actions whose instruction may change within an episode."""

    current_instruction: str
    """The instruction of the last action."""


@runtime_checkable
class MarksCorrections(Protocol):
    """A source of actions that tells which of them are a person's corrections of a policy."""

    is_correction: bool
    """Whether the last action is one."""


@dataclass(frozen=True)
class Status:
    """The state of a recording, for a display: episode, frames so far, rate, bytes in the queue, dropped frames."""

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
class _FrameCounts:
    """The numbers of an episode's recorded and dropped frames."""

    frames: int = 0
    dropped: int = 0


@dataclass(frozen=True)
class _Episode:
    command: ControlCommand | None
    frames: int
    dropped: int
    timing: Timing


class _SavingEpisode(NamedTuple):
    """An episode that is being saved; `times` are the times of its end and, once it is on disk, of that."""

    number: int
    task: str
    episode: _Episode
    saved: Future[None]
    times: list[float]
    success: bool | None


def dataset_features(
    robot: RobotFeatures, *, video: bool = True, corrections: bool = False
) -> dict[str, Feature]:
    """Return the dataset features of a robot; with `corrections` also `INTERVENTION`, for a source that `MarksCorrections`."""
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
    marks = {INTERVENTION: Feature("bool", (1,))} if corrections else {}
    return {**cameras, **vectors, **marks}


class Recorder:
    """Records episodes of a connected robot.

    Args:
        robot: connected. An `EpisodicRobot` resets its scene by itself, and may end an episode.
        source: the source of the actions.
        writer: the dataset's writer, with `episodes_per_file=1`, so that every finished episode is durable.
        plan: the settings of the recording.
        controls: keys that end, redo or pause an episode.
        on_tick: called with the status ten times a second, in the loop, so it must be fast.
        on_episode: called with the report of every episode once it is on disk.
        on_failure: called with the error that ends the recording, before the encoder finishes.
        queue_bytes: the bound of the encoding queue.
        keep_unfinished: save an episode that an error or Ctrl-C interrupts; one without camera pictures is saved in any case.
        clock, sleep: the time in seconds, and the function that waits.

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
        self._saving: _SavingEpisode | None = None
        self._reports: list[EpisodeReport] = []
        self._log = RecordingLog(writer.root, writer.num_episodes)

    def run(self) -> list[EpisodeReport]:
        """Record until the plan is done or a stop command; returns a report for each episode.

        After any error, every reported episode is on disk; the current one is discarded, unless `keep_unfinished` is set.

        Raises:
            ConfigError: there is no task.
            RobotError: the robot or teleoperator failed, or a camera gave no more pictures; then the episode so far is saved.
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
                episode = self._run_episode(number, task, encoding)
                if episode.command is ControlCommand.REDO or not episode.frames:
                    encoding.discard()
                    if self._ended_by is not None:
                        raise self._ended_by
                    if episode.command is ControlCommand.STOP:
                        break
                    logger.info("Episode %d is thrown away, and recorded again.", number)
                    if self._reset_scene() is ControlCommand.STOP:
                        break
                    continue
                saved, times = encoding.save(), [self._clock()]
                saved.add_done_callback(lambda _, times=times: times.append(self._clock()))  # type: ignore[misc]
                success = self._robot.is_success if isinstance(self._robot, EpisodicRobot) else None
                self._saving = _SavingEpisode(number, task, episode, saved, times, success)
                command = episode.command
                if command is not ControlCommand.STOP and len(reports) + 1 < self._plan.num_episodes:
                    command = self._reset_scene()
                self._report_saved(wait=True)
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

    def _report_saved(self, *, wait: bool) -> None:
        """Report the episode that is being saved once it is on disk, or raise its error; `wait` waits for that."""
        saving = self._saving
        if saving is None or not (wait or saving.saved.done()):
            return
        self._saving = None
        saving.saved.result()
        episode = saving.episode
        report = EpisodeReport(
            saving.number,
            saving.task,
            episode.frames,
            self._plan.fps,
            episode.timing if self._plan.realtime else None,
            episode.dropped,
            saving.times[-1] - saving.times[0],
            saving.success,
        )
        self._log.add(report)
        self._reports.append(report)
        if self._on_episode is not None:
            self._on_episode(report)

    def _begin(self, number: int) -> str:
        in_scene = self._robot.reset(number) if isinstance(self._robot, EpisodicRobot) else None
        task = self._plan.task if self._plan.task is not None else in_scene
        if task is None:
            raise ConfigError(
                f"The robot '{self._robot.name}' does not say what it is to do: give the instruction that the episodes show, "
                "--dataset.single_task='Pick up the cube.'"
            )
        self._source.begin(task)
        return task

    def _run_episode(self, number: int, task: str, encoding: EncodingThread) -> _Episode:
        """Run an episode and put its frames into the queue."""
        loop = self._loop(realtime=self._plan.realtime)
        counts = _FrameCounts()
        max_frames = max(1, round(self._plan.episode_time_s * self._plan.fps))

        def on_tick(observation: Observation, action: NDArray[Any] | None) -> None:
            nonlocal task
            if action is not None:
                if isinstance(self._source, AcceptsInstruction):
                    task = self._source.current_instruction
                if encoding.add(self._frame(observation, action), task):
                    counts.frames += 1
                else:
                    counts.dropped += 1
                    if counts.dropped == 1:
                        logger.warning("Encoding can't follow: frames of episode %d are left out.", number)
            self._show(number, task, counts, loop, encoding, observation, action)

        command: ControlCommand | None
        try:
            command = loop.run(
                self._source,
                lambda: counts.frames + counts.dropped + loop.rate_limiter.missed >= max_frames,
                on_tick,
            )
        except (CameraTimeoutError, ConnectionLostError) as error:
            command = self._end_without_device(error)
        except (SmolactError, KeyboardInterrupt) as error:
            if not self._keep_unfinished:
                raise
            self._end_with(error)
            command = ControlCommand.STOP
        return _Episode(command, counts.frames, counts.dropped, loop.rate_limiter.timing())

    def _loop(self, *, realtime: bool) -> ControlLoop:
        return ControlLoop(
            self._robot,
            self._plan.fps,
            realtime,
            self._controls,
            self._clock,
            self._sleep,
            self._plan.interpolation,
        )

    def _end_without_device(self, error: RobotError) -> ControlCommand:
        """End the recording after this episode, which keeps its frames: a camera or the robot is gone."""
        self._end_with(
            RobotError(
                f"{error} The episode ended there, and what was recorded of it is kept; go on with --resume=true."
            )
        )
        return ControlCommand.STOP

    def _end_with(self, error: BaseException) -> None:
        """End the episode now, and the recording after saving it."""
        self._ended_by = error
        self._on_failure(error)

    def _frame(self, observation: Observation, action: NDArray[Any]) -> Mapping[str, NDArray[Any]]:
        features = self._robot.features
        keys = [*features.vectors, *features.cameras]
        missing = [key for key in keys if key not in observation]
        if missing:
            raise FeatureError(
                f"The robot '{self._robot.name}' declares {', '.join(missing)} and does not observe it. See to its cameras "
                "and sensors."
            )
        marks = (
            {INTERVENTION: np.array([self._source.is_correction])}
            if isinstance(self._source, MarksCorrections)
            else {}
        )
        return {**{key: observation[key] for key in keys}, ACTION: np.asarray(action, np.float32), **marks}

    def _reset_scene(self) -> ControlCommand | None:
        """Wait between two episodes while a person resets the scene; a simulation needs no time."""
        if isinstance(self._robot, EpisodicRobot) or self._plan.reset_time_s == 0:
            return None
        logger.info("Set the scene back (%g s; right arrow: done).", self._plan.reset_time_s)
        loop = self._loop(realtime=True)
        max_frames = round(self._plan.reset_time_s * self._plan.fps)
        drives_resets = self._source.drives_resets
        while True:
            try:
                command = loop.run(
                    self._source if drives_resets else NoSource(),
                    lambda: loop.ticks + loop.rate_limiter.missed >= max_frames,
                    lambda *_: self._report_saved(wait=False),
                    observes=drives_resets,
                )
            except (CameraTimeoutError, ConnectionLostError) as error:
                return self._end_without_device(error)
            if command is not ControlCommand.REDO or loop.ticks + loop.rate_limiter.missed >= max_frames:
                return command

    def _show(
        self,
        number: int,
        task: str,
        counts: _FrameCounts,
        loop: ControlLoop,
        encoding: EncodingThread,
        observation: Observation,
        action: NDArray[Any] | None,
    ) -> None:
        if self._on_tick is not None and self._clock() >= self._next_show:
            self._next_show = self._clock() + SHOW_INTERVAL_S
            self._on_tick(
                Status(
                    number,
                    task,
                    counts.frames,
                    loop.rate_limiter.timing(),
                    encoding.waiting_bytes,
                    counts.dropped,
                    action is None,
                    observation,
                    action,
                )
            )

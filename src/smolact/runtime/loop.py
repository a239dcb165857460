"""The control loop of everything that moves a robot: observe, compute the action, send it, at a fixed rate.

    observation -> source (teleoperator, policy, recorded actions) -> gate -> robot

Recording, rollout, replay and teleoperation run this loop, each with its own source, callback and stop condition.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from smolact.errors import ConfigError, RobotError
from smolact.robots.base import (
    CameraTimeoutError,
    ConnectionLostError,
    EpisodicRobot,
    Observation,
    Reconnectable,
    Robot,
    Teleoperator,
    gate_of,
    move,
)
from smolact.robots.safety import Gate
from smolact.runtime.controls import ControlCommand, Controls
from smolact.runtime.rate_limiter import RateLimiter

logger = logging.getLogger(__name__)

PAUSE_STEP = 0.02
STALE_S, DEAD_S = 0.2, 1.0
"""The age of a camera's picture above which the loop waits, and above which it ends."""


class ActionSource(Protocol):
    """The source of a robot's actions."""

    drives_resets: bool
    """Whether it also moves the robot between two episodes."""

    def begin(self, task: str) -> None:
        """Begin an episode with this instruction."""
        ...

    def get_action(self, observation: Observation) -> NDArray[Any] | None:
        """Return the action to send now, (A,) float32; None to send nothing."""
        ...


@runtime_checkable
class HasTimestamps(Protocol):
    """A robot with the ages of its cameras' pictures."""

    def camera_ages(self) -> Mapping[str, float]:
        """Return the ages in seconds, by camera."""
        ...


@runtime_checkable
class HasState(Protocol):
    """A robot whose state can be read without its cameras."""

    def get_state(self) -> Observation:
        """Return the observation without pictures."""
        ...


OnTick = Callable[[Observation, NDArray[Any] | None], None]


@dataclass
class ControlLoop:
    """The loop of one episode.

    Args:
        robot: connected.
        fps: ticks a second.
        realtime: hold the rate; False runs as fast as possible, for a simulation.
        controls: keys that end or pause the episode.
        clock, sleep: the time in seconds, and the function that waits.
        interpolation: commands of each tick, evenly spread over it: on the straight line from the last action to the new one.

    Attributes:
        ticks: ticks so far, without those of a pause.
        rate_limiter: the clock of the ticks, with its timing.

    Raises:
        RobotError: the robot has no gate.
        ConfigError: `interpolation` is below 1.
    """

    robot: Robot
    fps: float
    realtime: bool = True
    controls: Controls | None = None
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    interpolation: int = 1
    ticks: int = 0

    def __post_init__(self) -> None:
        """Check that there is a gate."""
        gate_of(self.robot)
        if self.interpolation < 1:
            raise ConfigError(f"--interpolation={self.interpolation}: a tick has one command or more.")
        self.rate_limiter = RateLimiter(self.fps, self.clock, self.sleep)
        self.controls = self.controls or Controls()
        self._is_blind = False

    def run(
        self,
        source: ActionSource,
        stop: Callable[[], bool],
        on_tick: OnTick = lambda observation, action: None,
        *,
        observes: bool = True,
        ends_with_episode: bool = True,
        checks_cameras: bool = True,
    ) -> ControlCommand | None:
        """Run until `stop()`, a command, or the end of a simulation's episode; returns the command.

        Args:
            source: the source of the actions.
            stop: called before every tick; True ends the loop.
            on_tick: called after every tick with the observation and the action that was sent, None if none was.
            observes: False does not read the robot's observation, for a source that does not need it.
            ends_with_episode: False continues after a simulation's episode has ended.
            checks_cameras: False continues with old pictures, or with none, for a person who does not drive by them.

        Raises:
            CameraTimeoutError: a camera has given no picture for too long.
            ConnectionLostError: the robot does not reply, and there is no terminal from which a person can say that it is back.
            UnsafeActionError: the gate refused an action.
            SmolactError: errors of the robot, the source and `on_tick`.
        """
        assert self.controls is not None  # __post_init__ sets it
        is_stale = False
        while not stop():
            command = self.controls.take()
            if command is not None:
                return command
            if self.realtime:
                self.rate_limiter.tick()
            try:
                observation = self._observe(needs_pictures=checks_cameras) if observes else {}
                camera, age = self._oldest_picture() if observes and checks_cameras else ("", 0.0)
                if age > DEAD_S:
                    raise CameraTimeoutError(
                        f"The camera '{camera}' has given no picture for {age:.1f} s. See to its cable."
                    )
                if age > STALE_S and not is_stale:
                    is_stale = True
                    logger.warning("The camera '%s' is late by %.0f ms: waiting for it.", camera, 1000 * age)
                if self.controls.paused or age > STALE_S:
                    on_tick(observation, None)
                    self.rate_limiter.pause()
                    self.sleep(PAUSE_STEP)
                    continue
                action = source.get_action(observation)
                sent = None if action is None else self._send(action)
            except ConnectionLostError as error:
                command = self._reconnect(error, source)
                if command is not None:
                    return command
                continue
            self.ticks += 1
            on_tick(observation, sent)
            if ends_with_episode and self._episode_is_over():
                break
        return self.controls.take()  # pressed during the last tick

    def _observe(self, *, needs_pictures: bool) -> Observation:
        """Return the observation; without pictures and with one warning, if a camera failed and they are not needed."""
        try:
            return self.robot.get_observation()
        except CameraTimeoutError as error:
            if needs_pictures or not isinstance(self.robot, HasState):
                raise
            if not self._is_blind:
                self._is_blind = True
                logger.warning("%s The robot is driven without it.", error)
            return self.robot.get_state()

    def _send(self, action: NDArray[Any]) -> NDArray[Any]:
        """Send the commands of a tick, the last of which is the action; returns it as it was sent."""
        last, wait = self.robot.gate.position, 0.0
        if self.realtime and self.interpolation > 1:
            wait = self.rate_limiter.remaining() / self.interpolation
        if self.interpolation > 1 and np.isfinite(last).all():
            # Checked as one step: the parts of a step that is too large would pass.
            self.robot.gate.check_chunk(np.asarray(action)[None])
            for share in np.arange(1, self.interpolation) / self.interpolation:
                sent = move(self.robot, last + share * (action - last))
                if self._episode_is_over():
                    return sent
                if wait > 0:
                    self.sleep(wait)
        return move(self.robot, action)

    def _episode_is_over(self) -> bool:
        return isinstance(self.robot, EpisodicRobot) and self.robot.episode_is_over

    def _reconnect(self, error: ConnectionLostError, source: ActionSource) -> ControlCommand | None:
        """Wait until a person has plugged the robot, or what drives it, in again; returns the command that ends the episode, if one is given.

        Raises:
            ConnectionLostError: the robot can't be connected again, or there is no terminal.
        """
        assert self.controls is not None
        if not isinstance(self.robot, Reconnectable) or not self.controls.is_operated:
            raise error
        problem: RobotError = error
        devices = [device for device in (self.robot, source) if isinstance(device, Reconnectable)]
        for device in devices:
            device.drop()
        while True:
            logger.error(
                "%s\nThe robot holds where it is while it has power. Plug it in again and press space to go on, or q to stop.",
                problem,
            )
            self.controls.pause()
            while self.controls.paused:
                self.sleep(PAUSE_STEP)
            command = self.controls.take()
            if command is not None:
                return command
            try:
                for device in devices:
                    device.reconnect()
            except RobotError as again:
                problem = again
                continue
            self.rate_limiter.pause()
            logger.info("Connected again.")
            return None

    def run_for(
        self, ticks: int, source: ActionSource, on_tick: OnTick = lambda observation, action: None
    ) -> ControlCommand | None:
        """Call `run` until so many ticks are done."""
        return self.run(source, lambda: self.ticks >= ticks, on_tick)

    def _oldest_picture(self) -> tuple[str, float]:
        ages = self.robot.camera_ages() if isinstance(self.robot, HasTimestamps) else {}
        return max(ages.items(), key=lambda item: item[1], default=("", 0.0))


@runtime_checkable
class _HasBegin(Protocol):
    def begin(self) -> None: ...


class TeleoperatorSource:
    """The actions of a connected teleoperator, clamped to the limits of the robot's gate."""

    drives_resets = True

    def __init__(self, teleoperator: Teleoperator, gate: Gate) -> None:
        self._teleoperator, self._gate = teleoperator, gate

    def begin(self, task: str) -> None:
        """Begin an episode, for a teleoperator with a `begin`."""
        if isinstance(self._teleoperator, _HasBegin):
            self._teleoperator.begin()

    def drop(self) -> None:
        """Close the teleoperator's port, if it has one."""
        if isinstance(self._teleoperator, Reconnectable):
            self._teleoperator.drop()

    def reconnect(self) -> None:
        """Connect the teleoperator again, if it has a port."""
        if isinstance(self._teleoperator, Reconnectable):
            self._teleoperator.reconnect()

    def get_action(self, observation: Observation) -> NDArray[Any]:
        """Return the teleoperator's action, clamped to the gate's limits."""
        return self._gate.clamp(self._teleoperator.get_action(observation))


class RecordedSource:
    """Recorded actions (T, A), one for each tick."""

    drives_resets = False

    def __init__(self, actions: NDArray[Any]) -> None:
        self._actions, self._sent = actions, 0

    @property
    def is_over(self) -> bool:
        """Whether all actions were returned."""
        return self._sent == len(self._actions)

    def begin(self, task: str) -> None:
        """Nothing depends on the instruction."""

    def get_action(self, observation: Observation) -> NDArray[Any]:
        """Return the next action, (A,)."""
        self._sent += 1
        action: NDArray[Any] = self._actions[self._sent - 1]
        return action


class NoSource:
    """A source without actions: the robot stays where it is."""

    drives_resets = False

    def begin(self, task: str) -> None:
        """Nothing depends on the instruction."""

    def get_action(self, observation: Observation) -> None:
        """Return None."""

"""Corrections: a policy drives, a person takes over by a teleoperator and gives back, and each frame says who drove.

    driving ──key, button, motion──► aligning ──leader is at the robot's pose──► correcting ──key, button, stillness──► driving
       policy                        the robot holds                              teleoperator

The policy's chunks are discarded when it drives again, since they begin where the person took over.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from smolact.robots.base import Observation, Teleoperator
from smolact.robots.safety import Gate
from smolact.runtime.controller import ChunkController
from smolact.runtime.loop import TeleoperatorSource

KEY = "tab"
"""The key that takes over, and gives back."""
BLEND_S = 0.5
"""Seconds in which the distance between the robot's pose and the teleoperator's is reduced to 0, after a take-over."""
ALIGN_SPEED = 60.0
"""The largest speed of a leader on its way to the robot's pose: degrees, or percent of the range, per second."""
MOTION, MOTION_S = 6.0, 0.5
"""A leader that was still takes over when it moves by so much, in degrees or percent, within so many seconds."""
STILLNESS, STILL_S = 1.0, 1.5
"""A leader that took over by its motion gives back when it has moved by less than this for so many seconds."""


@runtime_checkable
class DrivenLeader(Protocol):
    """A teleoperator with motors, in the units of the robot's actions."""

    def drive_to(self, position: ArrayLike) -> None:
        """Send it to a position (A,), with its torque on until `let_go`."""
        ...

    def let_go(self) -> None:
        """Switch its torque off."""
        ...


@runtime_checkable
class TakesOver(Protocol):
    """A teleoperator that decides when it drives: a gamepad with a button, a script that foresees failures."""

    def takes_over(self, observation: Observation) -> bool:
        """Whether it drives now; called at every tick."""
        ...


class Phase(Enum):
    """Who moves the robot."""

    DRIVING = auto()  # the policy
    ALIGNING = auto()  # the robot holds while the leader is driven to the robot's pose
    CORRECTING = auto()  # the teleoperator


@dataclass
class CorrectionCounts:
    """Counts of an episode: corrections, and their ticks."""

    corrections: int = 0
    ticks: int = 0

    def __str__(self) -> str:
        noun = "correction" if self.corrections == 1 else "corrections"
        return f"{self.corrections} {noun} of {self.ticks} ticks"


class CorrectedSource:
    """The actions of a policy, or of the teleoperator while that corrects it; an `ActionSource` of the control loop.

    Every action of the teleoperator is at most one step of the gate away from the last action.

    Args:
        controller: the policy's actions.
        teleoperator: connected. A `TakesOver` decides itself; a `DrivenLeader` takes over when it is moved.
        gate: the gate of the connected robot.
        fps: ticks a second.

    Attributes:
        phase: who moves the robot.
        is_correction: whether the last action was the teleoperator's.
        counts: of this episode.
    """

    drives_resets = False

    def __init__(
        self, controller: ChunkController, teleoperator: Teleoperator, gate: Gate, fps: float
    ) -> None:
        self._controller, self._teleoperator, self._gate = controller, teleoperator, gate
        self._source = TeleoperatorSource(teleoperator, gate)
        self._fps = fps
        self._recent = deque[NDArray[np.float64]](maxlen=1 + round(max(MOTION_S, STILL_S) * fps))
        self._key = threading.Event()
        self._position: NDArray[np.float64] | None = None
        self._begin("")

    @property
    def task(self) -> str:
        """The instruction."""
        return self._controller.task

    @property
    def current_instruction(self) -> str:
        """The instruction of the last action."""
        return self.task if self.is_correction else self._controller.current_instruction

    def begin(self, task: str) -> None:
        """Begin an episode, in which the policy drives first."""
        self._release()
        self._controller.begin(task)
        self._source.begin(task)
        self._begin(task)

    def drop(self) -> None:
        """Close the teleoperator's port, if it has one."""
        self._source.drop()

    def reconnect(self) -> None:
        """Connect the teleoperator again; the policy drives, and is asked first."""
        self._source.reconnect()
        self._begin(self.task)
        self._controller.reconnect()

    def press(self, key: str) -> None:
        """Process a pressed key: `KEY` takes over or gives back. May be called by another thread."""
        if key == KEY:
            self._key.set()

    def get_action(self, observation: Observation) -> NDArray[Any] | None:
        """Return the action of this tick, (A,); None to send nothing.

        Raises:
            SmolactError: errors of the policy and of the teleoperator.
        """
        self._position = None
        wanted = self._is_wanted(observation)
        if self.phase is Phase.DRIVING and wanted:
            self._take_over(observation)
        elif self.phase is not Phase.DRIVING and not wanted:
            self._give_back()
        self.is_correction = False
        if self.phase is Phase.DRIVING:
            return self._controller.get_action(observation)
        if self.phase is Phase.ALIGNING:
            self._align()  # the robot holds
            return None
        return self._correct(observation)

    def _begin(self, task: str) -> None:
        self.phase = Phase.DRIVING
        self.is_correction = self._by_key = self._by_motion = self._is_armed = False
        self.counts = CorrectionCounts()
        self._path: NDArray[np.float64] = np.empty((0, 0))
        self._offset: NDArray[np.float64] | None = None
        self._ticks = 0
        self._recent.clear()
        self._key.clear()

    def _is_wanted(self, observation: Observation) -> bool:
        """Whether the teleoperator is to drive at this tick."""
        if self._key.is_set():
            self._key.clear()
            self._by_key = self.phase is Phase.DRIVING
            self._by_motion = False
            self._recent.clear()
        decided = isinstance(self._teleoperator, TakesOver) and self._teleoperator.takes_over(observation)
        if isinstance(self._teleoperator, DrivenLeader) and not self._by_key:
            self._watch(self._read(observation))
        return decided or self._by_key or self._by_motion

    def _read(self, observation: Observation) -> NDArray[np.float64]:
        """Return the teleoperator's action, which is read once a tick."""
        if self._position is None:
            self._position = np.asarray(self._teleoperator.get_action(observation), np.float64)
        return self._position

    def _watch(self, position: NDArray[np.float64]) -> None:
        """Notice that a hand has begun or ceased to move the leader."""
        if self.phase is Phase.ALIGNING:  # its motors move it
            return
        self._recent.append(position)
        path = np.array(self._recent)
        still = round(STILL_S * self._fps)
        is_still = len(path) > still and np.ptp(path[-still - 1 :], axis=0).max() < STILLNESS
        if self.phase is Phase.CORRECTING:
            self._by_motion = self._by_motion and not is_still
            return
        self._is_armed = self._is_armed or bool(
            is_still
        )  # it may still be on its way to where it is laid down
        moved = np.ptp(path[-round(MOTION_S * self._fps) - 1 :], axis=0).max()
        self._by_motion = self._is_armed and bool(moved > MOTION)

    def _take_over(self, observation: Observation) -> None:
        self.counts.corrections += 1
        self._ticks, self._offset = 0, None
        self.phase = Phase.CORRECTING
        if isinstance(self._teleoperator, DrivenLeader) and np.isfinite(self._gate.position).all():
            self.phase = Phase.ALIGNING
            start = self._read(observation)
            goal = self._gate.position.astype(np.float64)
            count = 1 + int(np.abs(goal - start).max() * self._fps / ALIGN_SPEED)
            self._path = start + (goal - start) * np.arange(1, count + 1)[:, None] / count
        elif not _is_scripted(self._teleoperator):
            self._source.begin(
                self.task
            )  # a target that is moved by keys or sticks begins at the robot's pose

    def _align(self) -> None:
        """Drive the leader one step further to the robot's pose, and let the hand move it from there."""
        assert isinstance(self._teleoperator, DrivenLeader)
        if len(self._path):
            self._teleoperator.drive_to(self._path[0])
            self._path = self._path[1:]
            return
        self._release()
        self._recent.clear()
        self.phase = Phase.CORRECTING

    def _correct(self, observation: Observation) -> NDArray[np.float32]:
        action = self._read(observation)
        if self._offset is None:
            last = self._gate.position.astype(np.float64)
            known = np.isfinite(last) & (not _is_scripted(self._teleoperator))
            self._offset = np.where(known, last - action, 0.0)
        self._ticks += 1
        rest = max(0.0, 1 - self._ticks / max(1.0, BLEND_S * self._fps))
        self.is_correction = True
        self.counts.ticks += 1
        return self._gate.clamp(action + rest * self._offset)

    def _give_back(self) -> None:
        self._release()
        self._recent.clear()
        self._is_armed = False
        self.phase = Phase.DRIVING
        self._controller.restart()

    def _release(self) -> None:
        if isinstance(self._teleoperator, DrivenLeader):
            self._teleoperator.let_go()


def _is_scripted(teleoperator: Teleoperator) -> bool:
    """Whether its actions begin at the robot's pose by themselves, so that there is no offset."""
    return bool(getattr(teleoperator, "is_scripted", False))

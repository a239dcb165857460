"""Teleoperators that move a target: the keyboard's arrows, a gamepad's sticks."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smolact.errors import RobotError, optional_import
from smolact.robots.base import Observation, Robot
from smolact.types import STATE

SPEED = 0.3  # of a number's range, a second
UNITS = 30.0  # a second, where the robot tells no range: degrees, or percent
HELD = 0.15  # how long a key counts as held: terminals repeat it, and do not tell when it is let go


class IncrementalTeleop:
    """A target that moves with a velocity, from where the robot is.

    Args:
        speed: how fast at full velocity, as a share of the range a second.
        clock: seconds, monotonic.
    """

    def __init__(self, speed: float = SPEED, clock: Callable[[], float] = time.monotonic) -> None:
        self._speed, self._clock = speed, clock
        self._scale = self._low = self._high = np.zeros(0)
        self._target: NDArray[np.float64] | None = None
        self._last = 0.0

    def connect(self, robot: Robot, who: str) -> None:
        """Learn the robot's numbers.

        Raises:
            RobotError: its state is not what its actions are, so that no target can begin there.
        """
        features = robot.features
        size = len(features.action)
        if len(features.vectors.get(STATE, ())) != size:
            raise RobotError(
                f"The teleoperator '{who}' moves a target from where the robot is, and '{robot.name}' has {size} numbers in its "
                f"action and {len(features.vectors.get(STATE, ()))} in {STATE}. Use another teleoperator."
            )
        limits = features.limits or ((-np.inf, np.inf),) * size
        self._low, self._high = np.array(limits, np.float64).T
        span = self._high - self._low
        self._scale = np.where(np.isfinite(span), span * self._speed, UNITS * self._speed / SPEED)
        self._target = None

    def move(self, observation: Observation, velocity: NDArray[np.float64]) -> NDArray[np.float32]:
        """The target after moving with `velocity` (A,) in [-1, 1] since the last call; it rests where it is at zero."""
        now = self._clock()
        state = np.asarray(observation[STATE], np.float64)
        if self._target is None or not velocity.any():
            self._target = state if self._target is None else self._target
            self._last = now
        # A pause is no move: what passed counts for a tenth of a second at most.
        step = velocity * self._scale * min(now - self._last, 0.1)
        self._last = now
        self._target = np.clip(self._target + step, self._low, self._high)
        return self._target.astype(np.float32)

    def rest(self) -> None:
        """Begin again from where the robot is."""
        self._target = None


class KeyboardTeleoperator:
    """Arrow keys move the first two numbers of an action; digits choose another one, which up and down then move.

    Right and down are more, left and up less, as in a picture. 0 goes back to the first two.

    Args:
        speed: as a share of the range a second.
        clock: seconds, monotonic.
    """

    name = "keyboard"

    def __init__(self, speed: float = SPEED, clock: Callable[[], float] = time.monotonic) -> None:
        self._incremental, self._clock = IncrementalTeleop(speed, clock), clock
        self._pressed: dict[str, float] = {}
        self._size = self._chosen = 0

    def press(self, key: str) -> None:
        """A key was pressed."""
        if key.isdigit() and int(key) <= self._size:
            self._chosen = int(key)
        self._pressed[key] = self._clock()

    def connect(self, robot: Robot) -> None:
        """Make it ready to drive that robot.

        Raises:
            RobotError: the robot's state is not what its actions are.
        """
        self._incremental.connect(robot, self.name)
        self._size = len(robot.features.action)

    def get_action(self, observation: Observation) -> NDArray[Any]:
        """Where the target is now, (A,) float32."""
        now = self._clock()
        held = {key for key, when in self._pressed.items() if now - when <= HELD}
        across, down = ("right" in held) - ("left" in held), ("down" in held) - ("up" in held)
        velocity = np.zeros(self._size)
        if self._chosen:
            velocity[self._chosen - 1] = -down
        else:
            velocity[:2] = (across, down)[: self._size]
        return self._incremental.move(observation, velocity)

    def begin(self) -> None:
        """An episode begins: the target is where the robot is."""
        self._incremental.rest()

    def disconnect(self) -> None:
        """Let go."""
        self._pressed.clear()


class GamepadTeleoperator:
    """The sticks move the first four numbers of an action, the triggers the fifth and sixth. Needs pygame.

    Args:
        index: which gamepad, from 0.
        speed: as a share of the range a second.
        dead_zone: how far a stick may be off its middle without meaning anything.
        clock: seconds, monotonic.
    """

    name = "gamepad"

    def __init__(
        self,
        index: int = 0,
        speed: float = SPEED,
        dead_zone: float = 0.1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._index, self._dead_zone, self._incremental = index, dead_zone, IncrementalTeleop(speed, clock)
        self._pygame: Any = None
        self._stick: Any = None
        self._size = 0

    def connect(self, robot: Robot) -> None:
        """Open the gamepad.

        Raises:
            MissingDependencyError: pygame is not installed.
            RobotError: there is no such gamepad, or the robot's state is not what its actions are.
        """
        self._incremental.connect(robot, self.name)
        self._size = len(robot.features.action)
        os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
        pygame: Any = optional_import("pygame", "gamepad")
        pygame.init()
        pygame.joystick.init()
        count = pygame.joystick.get_count()
        if not 0 <= self._index < count:
            names = ", ".join(f"{at}: {pygame.joystick.Joystick(at).get_name()}" for at in range(count))
            pygame.quit()
            raise RobotError(
                f"There is no gamepad {self._index}; connected: {names or 'none'}. Plug one in, or choose with --teleop.index."
            )
        self._pygame, self._stick = pygame, pygame.joystick.Joystick(self._index)

    def get_action(self, observation: Observation) -> NDArray[Any]:
        """Where the target is now, (A,) float32.

        Raises:
            RobotError: it is not connected.
        """
        if self._stick is None:
            raise RobotError("The gamepad is not connected. Call connect() first.")
        self._pygame.event.pump()
        axes = np.array([self._stick.get_axis(at) for at in range(self._stick.get_numaxes())])
        axes[4:] = (axes[4:] + 1) / 2  # triggers rest at -1
        axes = np.where(np.abs(axes) < self._dead_zone, 0.0, axes)
        velocity = np.zeros(self._size)
        count = min(self._size, len(axes))
        velocity[:count] = axes[:count]
        return self._incremental.move(observation, velocity)

    def begin(self) -> None:
        """An episode begins: the target is where the robot is."""
        self._incremental.rest()

    def disconnect(self) -> None:
        """Let go of it."""
        if self._pygame is not None:
            self._pygame.quit()
            self._pygame = self._stick = None

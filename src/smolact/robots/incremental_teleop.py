"""Teleoperators that move a target position: the keyboard's arrow keys, a gamepad's sticks."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from smolact import unsupported
from smolact.errors import RobotError, optional_import
from smolact.robots.base import Observation, Robot
from smolact.types import STATE

SPEED = 0.3  # share of a number's range per second
UNITS_PER_S = 30.0  # per second, where the range is unknown: degrees, or percent
KEY_HOLD_S = 0.15  # seconds after a key press: terminals repeat held keys and report no release


class IncrementalTeleop:
    """A target position that moves with a velocity, starting from the robot's state.

    Args:
        speed: speed at full velocity, as a share of the range per second.
        clock: monotonic clock, in seconds.
    """

    def __init__(self, speed: float = SPEED, clock: Callable[[], float] = time.monotonic) -> None:
        self._speed, self._clock = speed, clock
        self._scale = self._low = self._high = np.zeros(0)
        self._target: NDArray[np.float64] | None = None
        self._last = 0.0

    def connect(self, robot: Robot, name: str) -> None:
        """Read the robot's action names and limits.

        Raises:
            RobotError: the robot's state and action differ in size, so that the target has no start.
        """
        features = robot.features
        size = len(features.action)
        if len(features.vectors.get(STATE, ())) != size:
            raise RobotError(
                f"The teleoperator '{name}' moves a target from where the robot is, and '{robot.name}' has {size} numbers in its "
                f"action and {len(features.vectors.get(STATE, ()))} in {STATE}. Use another teleoperator."
            )
        limits = features.limits or ((-np.inf, np.inf),) * size
        self._low, self._high = np.array(limits, np.float64).T
        span = self._high - self._low
        self._scale = np.where(np.isfinite(span), span * self._speed, UNITS_PER_S * self._speed / SPEED)
        self._target = None

    def move(self, observation: Observation, velocity: NDArray[np.float64]) -> NDArray[np.float32]:
        """Return the target after `velocity` (A,) in [-1, 1] since the last call; zero keeps it."""
        now = self._clock()
        state = np.asarray(observation[STATE], np.float64)
        if self._target is None or not velocity.any():
            self._target = state if self._target is None else self._target
            self._last = now
        # After a pause, at most a tenth of a second counts.
        step = velocity * self._scale * min(now - self._last, 0.1)
        self._last = now
        self._target = np.clip(self._target + step, self._low, self._high)
        return self._target.astype(np.float32)

    def reset(self) -> None:
        """Restart from the robot's state."""
        self._target = None


class KeyboardTeleoperator:
    """Arrow keys move the first two numbers of an action; a digit selects another for up and down.

    Right and down increase a number, left and up decrease it, as in an image. 0 selects the first two again.

    Args:
        speed: as a share of the range per second.
        clock: monotonic clock, in seconds.
    """

    name = "keyboard"
    UNSUPPORTED: ClassVar = unsupported.UNCALIBRATED

    def __init__(self, speed: float = SPEED, clock: Callable[[], float] = time.monotonic) -> None:
        self._incremental, self._clock = IncrementalTeleop(speed, clock), clock
        self._pressed: dict[str, float] = {}
        self._size = self._chosen = 0

    def press(self, key: str) -> None:
        """Handle a key press."""
        if key.isdigit() and int(key) <= self._size:
            self._chosen = int(key)
        self._pressed[key] = self._clock()

    def connect(self, robot: Robot) -> None:
        """Connect, to drive `robot`.

        Raises:
            RobotError: the robot's state and action differ in size.
        """
        self._incremental.connect(robot, self.name)
        self._size = len(robot.features.action)

    def get_action(self, observation: Observation) -> NDArray[Any]:
        """Return the present target, (A,) float32."""
        now = self._clock()
        held = {key for key, pressed_at in self._pressed.items() if now - pressed_at <= KEY_HOLD_S}
        right, down = ("right" in held) - ("left" in held), ("down" in held) - ("up" in held)
        velocity = np.zeros(self._size)
        if self._chosen:
            velocity[self._chosen - 1] = -down
        else:
            velocity[:2] = (right, down)[: self._size]
        return self._incremental.move(observation, velocity)

    def begin(self) -> None:
        """Start an episode at the robot's state."""
        self._incremental.reset()

    def disconnect(self) -> None:
        """Clear all pressed keys."""
        self._pressed.clear()


class GamepadTeleoperator:
    """Sticks move the first four numbers of an action, triggers the fifth and sixth. Needs pygame.

    Args:
        index: number of the gamepad, from 0.
        speed: as a share of the range per second.
        dead_zone: deflection below which a stick counts as centred.
        button: number of the button that, while it is held, takes over from a policy; 5 is the right shoulder of most gamepads.
        clock: monotonic clock, in seconds.
    """

    name = "gamepad"
    UNSUPPORTED: ClassVar = unsupported.GAMEPAD

    def __init__(
        self,
        index: int = 0,
        speed: float = SPEED,
        dead_zone: float = 0.1,
        button: int = 5,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._index, self._dead_zone, self._incremental = index, dead_zone, IncrementalTeleop(speed, clock)
        self._button = button
        self._pygame: Any = None
        self._stick: Any = None
        self._size = 0

    def connect(self, robot: Robot) -> None:
        """Open the gamepad.

        Raises:
            MissingDependencyError: pygame is not installed.
            RobotError: the gamepad does not exist, or the robot's state and action differ in size.
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
        """Return the present target, (A,) float32.

        Raises:
            RobotError: the gamepad is not connected.
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

    def takes_over(self, observation: Observation) -> bool:
        """Return whether its button is held, so that it corrects a policy.

        Raises:
            RobotError: the gamepad is not connected.
        """
        if self._stick is None:
            raise RobotError("The gamepad is not connected. Call connect() first.")
        self._pygame.event.pump()
        return self._button < self._stick.get_numbuttons() and bool(self._stick.get_button(self._button))

    def begin(self) -> None:
        """Start an episode at the robot's state."""
        self._incremental.reset()

    def disconnect(self) -> None:
        """Close the gamepad."""
        if self._pygame is not None:
            self._pygame.quit()
            self._pygame = self._stick = None

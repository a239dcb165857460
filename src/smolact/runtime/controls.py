"""Keyboard controls of an episode: finish, redo, pause, stop."""

from __future__ import annotations

import threading
from enum import Enum


class ControlCommand(Enum):
    """A command that ends an episode early."""

    FINISH = "finish"  # save it, and begin the next episode
    REDO = "redo"  # discard it, and record it again
    STOP = "stop"  # save it, and end the recording


KEYS = {
    "right": ControlCommand.FINISH,
    "enter": ControlCommand.FINISH,
    "left": ControlCommand.REDO,
    "backspace": ControlCommand.REDO,
    "escape": ControlCommand.STOP,
    "q": ControlCommand.STOP,
}
PAUSE = "space"
ARROWS = ("left", "right", "up", "down")


class Controls:
    """Maps keys to commands; thread-safe.

    Args:
        arrows_drive: whether the arrow keys drive a teleoperator; enter and backspace then replace right and left.

    Attributes:
        is_operated: whether a person can press the keys.
    """

    def __init__(self, *, arrows_drive: bool = False) -> None:
        self._arrows_drive = arrows_drive
        self._lock = threading.Lock()
        self._command: ControlCommand | None = None
        self._paused = False
        self.is_operated = False

    @property
    def paused(self) -> bool:
        """Whether the episode is paused."""
        return self._paused

    def press(self, key: str) -> None:
        """Process a pressed key: `right`, `escape`, `space`, `q` …; other keys are ignored."""
        with self._lock:
            if key == PAUSE:
                self._paused = not self._paused
            elif key in KEYS and not (self._arrows_drive and key in ARROWS):
                self._command, self._paused = KEYS[key], False

    def pause(self) -> None:
        """Pause the episode."""
        with self._lock:
            self._paused = True

    def take(self) -> ControlCommand | None:
        """Return the last command since the previous call, or None."""
        with self._lock:
            command, self._command = self._command, None
            return command

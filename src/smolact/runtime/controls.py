"""What a person says while recording: finish, redo, pause, stop."""

from __future__ import annotations

import threading
from enum import Enum


class ControlCommand(Enum):
    """What ends an episode before its time."""

    FINISH = "finish"  # keep it, and go on with the next
    REDO = "redo"  # throw it away, and record it again
    STOP = "stop"  # keep it, and record no more


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
    """Keys to commands; one thread presses, another one takes.

    Args:
        arrows_drive: the arrow keys belong to a teleoperator; enter and backspace do what right and left would.
    """

    def __init__(self, *, arrows_drive: bool = False) -> None:
        self._arrows_drive = arrows_drive
        self._lock = threading.Lock()
        self._command: ControlCommand | None = None
        self._paused = False

    @property
    def paused(self) -> bool:
        """Whether recording waits."""
        return self._paused

    def press(self, key: str) -> None:
        """A key was pressed: `right`, `escape`, `space`, `q` …; one that means nothing is let by."""
        with self._lock:
            if key == PAUSE:
                self._paused = not self._paused
            elif key in KEYS and not (self._arrows_drive and key in ARROWS):
                self._command, self._paused = KEYS[key], False

    def take(self) -> ControlCommand | None:
        """The last command since this was asked before."""
        with self._lock:
            command, self._command = self._command, None
            return command

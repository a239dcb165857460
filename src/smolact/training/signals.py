"""Ctrl-C and SIGTERM end a run between two steps, not inside one; work outside the steps ends at once."""

from __future__ import annotations

import contextlib
import logging
import signal
from collections.abc import Iterator
from typing import Any

logger = logging.getLogger(__name__)


class Stopped(KeyboardInterrupt):
    """Raised when a signal comes, or has come, where stopping loses nothing."""


class StopRequest:
    """The received signals; true when there is one."""

    def __init__(self) -> None:
        self.received: list[int] = []
        self._is_interruptible = False

    def __bool__(self) -> bool:
        return bool(self.received)

    @contextlib.contextmanager
    def interruptible(self, enabled: bool = True) -> Iterator[None]:
        """A context for work that a signal may interrupt, such as an evaluation, or waiting for data.

        Raises:
            Stopped: a signal has come, or comes within the block.
        """
        if enabled and self.received:
            raise Stopped
        self._is_interruptible = enabled
        try:
            yield
        finally:
            self._is_interruptible = False

    def note(self, number: int, _frame: Any) -> None:
        """Handle a signal.

        Raises:
            KeyboardInterrupt: it is the second one.
            Stopped: it is the first one, and the current work may be interrupted.
        """
        if self.received:
            raise KeyboardInterrupt
        self.received.append(number)
        logger.warning("Stopping after this step and saving. Once more stops at once, without saving.")
        if self._is_interruptible:
            raise Stopped


@contextlib.contextmanager
def stop_signals() -> Iterator[StopRequest]:
    """A request that becomes true at SIGINT or SIGTERM, for the loop to stop. A second one stops at once.

    Outside the main thread, where Python can't catch signals, it stays false.
    """
    request = StopRequest()
    try:
        previous = {number: signal.signal(number, request.note) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread
        previous = {}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)

"""Ctrl-C and SIGTERM end a run between two steps, not inside one; what is no step ends at once."""

from __future__ import annotations

import contextlib
import logging
import signal
from collections.abc import Iterator
from typing import Any

logger = logging.getLogger(__name__)


class Stopped(KeyboardInterrupt):
    """A signal came, or had come before, where nothing would be lost by leaving."""


class StopRequest:
    """Which signals have come; true when there is one."""

    def __init__(self) -> None:
        self.received: list[int] = []
        self._can_leave = False

    def __bool__(self) -> bool:
        return bool(self.received)

    @contextlib.contextmanager
    def leaving(self, leaves: bool = True) -> Iterator[None]:
        """For work that may be left at any moment, such as an evaluation, or waiting for data.

        Args:
            leaves: false: the block is not left.

        Raises:
            Stopped: a signal has come, or comes within the block.
        """
        if leaves and self.received:
            raise Stopped
        self._can_leave = leaves
        try:
            yield
        finally:
            self._can_leave = False

    def note(self, number: int, _frame: Any) -> None:
        """Handle a signal.

        Raises:
            KeyboardInterrupt: it is the second one.
            Stopped: it is the first one, and what is under way may be left.
        """
        if self.received:
            raise KeyboardInterrupt
        self.received.append(number)
        logger.warning("Stopping after this step and saving. Once more stops at once, without saving.")
        if self._can_leave:
            raise Stopped


@contextlib.contextmanager
def stop_signals() -> Iterator[StopRequest]:
    """Becomes true when SIGINT or SIGTERM comes: the loop stops by itself. A second one stops at once.

    Outside the main thread, where Python can't catch signals, it stays false.
    """
    request = StopRequest()
    try:
        former = {number: signal.signal(number, request.note) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread
        former = {}
    try:
        yield request
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)

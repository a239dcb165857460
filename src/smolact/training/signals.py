"""Ctrl-C and SIGTERM end a run between two steps, not inside one."""

from __future__ import annotations

import contextlib
import logging
import signal
from collections.abc import Iterator
from typing import Any

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """A list that fills when SIGINT or SIGTERM comes: the loop stops by itself. A second one stops at once.

    Outside the main thread, where Python can't catch signals, the list stays empty.
    """
    received: list[int] = []

    def note(number: int, _frame: Any) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)
        logger.warning("Stopping after this step and saving. Once more stops at once, without saving.")

    try:
        former = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread
        former = {}
    try:
        yield received
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)

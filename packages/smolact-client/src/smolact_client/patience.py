"""Waiting for an answer, with a warning when it takes long."""

from __future__ import annotations

import concurrent.futures
import contextlib
import logging
import time
from typing import TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")

QUIET_S = 2.0
"""A request that waits longer is logged, once until an answer arrives sooner again."""


class Patience:
    """Waits for the answers of one server, and logs the events of its connection.

    Args:
        url: the server's address.

    Attributes:
        is_silent: whether logging is off.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self.is_silent = self._has_warned = False

    def warn(self, message: str) -> None:
        """Log a warning about the connection."""
        if not self.is_silent:
            logger.warning("%s: %s", self._url, message)

    def wait(self, answer: concurrent.futures.Future[T], deadline: float, timeout: float) -> T:
        """Wait for the answer until `deadline` by the monotonic clock; `timeout` is the caller's total, for the log.

        Raises:
            concurrent.futures.TimeoutError: there is none by then. Errors of the future are raised as they are.
        """
        if deadline - time.monotonic() > QUIET_S:
            with contextlib.suppress(concurrent.futures.TimeoutError):
                result = answer.result(QUIET_S)
                self._has_warned = False
                return result
            if not (answer.done() or self._has_warned):
                self._has_warned = True
                self.warn(f"No answer for {QUIET_S:g} s: waiting for {timeout:g} s in all.")
        return answer.result(max(0.0, deadline - time.monotonic()))

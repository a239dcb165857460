"""Waiting for an answer, and saying so when it takes long."""

from __future__ import annotations

import concurrent.futures
import contextlib
import logging
import time
from typing import TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")

QUIET_S = 2.0
"""A question that waits for longer is told of, once, until an answer comes sooner again."""


class Patience:
    """Waits for the answers of one server, and logs what happens to its connection.

    Args:
        url: the server's address.

    Attributes:
        is_silent: nothing is logged.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self.is_silent = self._is_told = False

    def say(self, what: str) -> None:
        """Log what happens, when it happens."""
        if not self.is_silent:
            logger.warning("%s: %s", self._url, what)

    def wait(self, answer: concurrent.futures.Future[T], deadline: float, timeout: float) -> T:
        """The answer, until `deadline` by the monotonic clock; `timeout` is what the caller gave for all of it.

        Raises:
            concurrent.futures.TimeoutError: there is none by then; or what the future raises.
        """
        if deadline - time.monotonic() > QUIET_S:
            with contextlib.suppress(concurrent.futures.TimeoutError):
                found = answer.result(QUIET_S)
                self._is_told = False
                return found
            if not (answer.done() or self._is_told):
                self._is_told = True
                self.say(f"No answer for {QUIET_S:g} s: waiting for {timeout:g} s in all.")
        return answer.result(max(0.0, deadline - time.monotonic()))

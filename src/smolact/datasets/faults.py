"""Faults found by an inspection, and its progress callback."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Progress = Callable[[str, int, int], None]
"""Called with (description, done, total)."""


def no_progress(what: str, done: int, total: int) -> None:
    """Ignore the progress."""


@dataclass(frozen=True)
class Fault:
    """A fault in a dataset.

    Attributes:
        severity: an `error` prevents training with the affected data, a `warning` does not.
        place: the file, relative to the dataset's root, or the episode in it.
        message: what was expected, what was found, and the remedy.
        feature: the affected feature (values or statistics); None if it affects every sample.
    """

    severity: Literal["error", "warning"]
    place: str
    message: str
    feature: str | None = None

    def __str__(self) -> str:
        return f"{self.severity}: {self.place}: {self.message}"

"""What an inspection says: what is wrong, and how far it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


def no_progress(what: str, done: int, total: int) -> None:
    """Show nothing."""


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong.

    Attributes:
        severity: an `error` keeps training from what it relies on, a `warning` does not.
        place: the file, relative to the dataset's root, or the episode in it.
        message: what was expected, what was found, what to do.
        feature: whose values or statistics it is about; None for what every sample relies on.
    """

    severity: Literal["error", "warning"]
    place: str
    message: str
    feature: str | None = None

    def __str__(self) -> str:
        return f"{self.severity}: {self.place}: {self.message}"

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
        location: the file, relative to the dataset's root, or the episode in it.
        problem: what was expected and what was found.
        feature: the affected feature (values or statistics); None if it affects every sample.
        remedy: what to do about it; empty if `problem` says so.
        episodes: the episodes whose rows or video frames are affected.
        kind: what is wrong, for the kinds that a repair treats differently: `index` (the frame's number in the dataset), `task`
            (an unknown task number) or `depth` (its bits).
    """

    severity: Literal["error", "warning"]
    location: str
    problem: str
    feature: str | None = None
    remedy: str = ""
    episodes: tuple[int, ...] = ()
    kind: Literal["", "index", "task", "depth"] = ""

    @property
    def message(self) -> str:
        """What was expected, what was found, and the remedy."""
        return f"{self.problem} {self.remedy}".rstrip()

    def __str__(self) -> str:
        return f"{self.severity}: {self.location}: {self.message}"

"""Unreadable frames, which a training names, counts and skips."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from smolact.errors import DatasetError

FLAG = "--dataset.max_bad_samples"


class Unreadable(NamedTuple):
    """A frame with an image that can't be decoded.

    Attributes:
        frame: the frame's number in it.
        reason: the camera, the file and the fault.
    """

    root: Path
    episode: int
    frame: int
    reason: str

    @property
    def location(self) -> str:
        """The location of the frame, the same for all its cameras."""
        return f"{self.root}, episode {self.episode}, frame {self.frame}"


def unreadable_error(frames: Sequence[Unreadable]) -> DatasetError:
    """The error of a run that does not begin because of unreadable frames."""
    first = frames[0]
    more = f" (and {len(frames) - 1} more)" if len(frames) > 1 else ""
    return DatasetError(
        f"{first.location}{more} can't be read, and the run has not begun. {first.reason} See what else is damaged: smolact dataset "
        f"check --dataset.root={first.root}; keep the episodes that are whole: smolact dataset repair "
        f"--dataset.root={first.root}; or let the run take other frames in the place of up to N such: {FLAG}=N."
    )

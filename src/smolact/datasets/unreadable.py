"""A frame that can't be read, with its place: what a training names, counts and leaves out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from smolact.errors import DatasetError

FLAG = "--dataset.max_bad_samples"


class Unreadable(NamedTuple):
    """A frame of which a picture can't be decoded.

    Attributes:
        root: the dataset's folder.
        episode: the episode's number.
        frame: the frame's number there, from 0.
        reason: the camera, the file, and what is wrong.
    """

    root: Path
    episode: int
    frame: int
    reason: str

    @property
    def place(self) -> str:
        """Where it is; two cameras that fail at one frame are one place."""
        return f"{self.root}, episode {self.episode}, frame {self.frame}"


def refusal(found: Sequence[Unreadable]) -> DatasetError:
    """The error of a run that has not begun, and does not begin with frames that can't be read."""
    first = found[0]
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return DatasetError(
        f"{first.place}{more} can't be read, and the run has not begun. {first.reason} See what else is damaged: smolact dataset "
        f"check --dataset.root={first.root}; keep the episodes that are whole: smolact dataset repair "
        f"--dataset.root={first.root}; or let the run take other frames in the place of up to N such: {FLAG}=N."
    )

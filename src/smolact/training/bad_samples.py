"""Unreadable frames during a run: other frames replace them, up to a limit, and each is logged once.

A substitute depends only on seed and position (`IndexOrder.substitute`), so processes, workers and resumed runs agree.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

from smolact.datasets.unreadable import FLAG, Unreadable, unreadable_error
from smolact.errors import TrainingError
from smolact.files import read_json_object

logger = logging.getLogger(__name__)

DEFAULT_LIMIT = 16
"""Number of frames that a run may leave out where no limit is set."""
MAX_SHOWN = 20
FILE = "bad_samples.json"
"""smolact's own file in a checkpoint's training state: the unreadable frames of the run so far, with reasons."""


class BadSamples:
    """The unreadable frames of a run, each counted once.

    Args:
        limit: number of frames that may be left out; None for `DEFAULT_LIMIT`, and none in the first step of a run.

    Attributes:
        found: maps each frame's position to the reason.
        is_over: whether a step had unreadable frames after the limit was exceeded.
    """

    def __init__(self, limit: int | None = None) -> None:
        self.limit = DEFAULT_LIMIT if limit is None else limit
        self.has_limit = limit is not None
        self.found: dict[str, str] = {}
        self.is_over = False

    def __len__(self) -> int:
        return len(self.found)

    def add(self, unreadable: Sequence[Unreadable], step: int, *, is_first: bool = False) -> None:
        """Add a step's unreadable frames, the same on every process, and log new ones.

        Raises:
            DatasetError: the step is the first one of a new run, and no limit was set.
        """
        if unreadable and is_first and not self.has_limit:
            raise unreadable_error(unreadable)
        for frame in unreadable:
            if frame.location not in self.found:
                self.found[frame.location] = frame.reason
                logger.warning(
                    "Step %d: %s can't be read; another frame takes its place (%d so far, %d may be left out). %s",
                    step,
                    frame.location,
                    len(self.found),
                    self.limit,
                    frame.reason,
                )
        self.is_over |= bool(unreadable) and len(self.found) > self.limit

    def note(self) -> None:
        """Log all of them at the end of a run."""
        if self.found:
            logger.warning(
                "Not read in this run, with others in their places: %d frame%s: %s.",
                len(self.found),
                "s" * (len(self.found) > 1),
                self._shown(),
            )

    def error(self, step: int, checkpoint: Path | None) -> TrainingError:
        """Return the error of a run that stops since there are too many."""
        saved = (
            f"Step {step} is saved: {checkpoint}. Mend the dataset and go on (smolact train --resume=true "
            f"--output_dir={checkpoint.parent.parent}), or go on with more: {FLAG}={2 * len(self.found)} beside these flags."
            if checkpoint is not None
            else "Nothing was saved, as --save_checkpoint=false asks."
        )
        return TrainingError(
            f"{len(self.found)} frame{'s' * (len(self.found) > 1)} can't be read, and {self.limit} may be left out ({FLAG}): {self._shown()}. {saved}"
        )

    def save(self, folder: Path) -> None:
        """Write the frames into a checkpoint's training state."""
        (folder / FILE).write_text(json.dumps(self.found, indent=4) + "\n", encoding="utf-8")

    def load(self, folder: Path) -> None:
        """Load the frames that `save` wrote, if it wrote any.

        Raises:
            CheckpointError: the file is corrupt.
        """
        if (folder / FILE).is_file():
            data = read_json_object(folder / FILE, "Resume from another checkpoint, or remove this file.")
            self.found = {str(place): str(reason) for place, reason in data.items()}

    def _shown(self) -> str:
        more = f"; and {len(self.found) - MAX_SHOWN} more" if len(self.found) > MAX_SHOWN else ""
        return "; ".join(list(self.found)[:MAX_SHOWN]) + more

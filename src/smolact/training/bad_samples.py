"""Frames that can't be read while a run goes: others take their places, up to a limit, and each is named once.

Which frame takes a place follows from the seed and the place alone (`IndexOrder.substitute`), so processes, workers and resumed runs agree.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import gather_object

from smolact.datasets.unreadable import FLAG, Unreadable, refusal
from smolact.errors import TrainingError
from smolact.files import read_json_object

logger = logging.getLogger(__name__)

USUAL = 16
"""Frames that a run may leave out where nobody has set a limit."""
MAX_SHOWN = 20
FILE = "bad_samples.json"
"""Ours alone, in a checkpoint's training state: the frames that the run could not read so far, and why."""


class BadSamples:
    """The frames that a run could not read, each counted once.

    Args:
        limit: how many may be left out; None for `USUAL`, and none in the first step of a run.

    Attributes:
        found: the place of each, and why it can't be read.
        is_over: whether one was met when there were more than may be left out. A mended dataset has none to meet.
    """

    def __init__(self, limit: int | None = None) -> None:
        self.limit = USUAL if limit is None else limit
        self.is_set = limit is not None
        self.found: dict[str, str] = {}
        self.is_over = False

    def __len__(self) -> int:
        return len(self.found)

    def add(self, unreadable: Sequence[Unreadable], step: int, *, is_first: bool = False) -> None:
        """Take note of what a step met, the same on every process; what is new is logged.

        Raises:
            DatasetError: the step is the first one of a new run, and no limit was set.
        """
        if unreadable and is_first and not self.is_set:
            raise refusal(unreadable)
        for one in unreadable:
            if one.place not in self.found:
                self.found[one.place] = one.reason
                logger.warning(
                    "Step %d: %s can't be read; another frame takes its place (%d so far, %d may be left out). %s",
                    step,
                    one.place,
                    len(self.found),
                    self.limit,
                    one.reason,
                )
        self.is_over |= bool(unreadable) and len(self.found) > self.limit

    def note(self) -> None:
        """Name all of them at the end of a run, if there are any."""
        if self.found:
            logger.warning(
                "Not read in this run, with others in their places: %d frame%s: %s.",
                len(self.found),
                "s" * (len(self.found) > 1),
                self._shown(),
            )

    def error(self, step: int, checkpoint: Path | None) -> TrainingError:
        """The error of a run that stops since there are too many."""
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
        """Write them into a checkpoint's training state."""
        (folder / FILE).write_text(json.dumps(self.found, indent=4) + "\n", encoding="utf-8")

    def load(self, folder: Path) -> None:
        """Go on from what `save` wrote; nothing is known where it wrote nothing.

        Raises:
            CheckpointError: the file is damaged.
        """
        if (folder / FILE).is_file():
            data = read_json_object(folder / FILE, "Resume from another checkpoint, or remove this file.")
            self.found = {str(place): str(reason) for place, reason in data.items()}

    def _shown(self) -> str:
        more = f"; and {len(self.found) - MAX_SHOWN} more" if len(self.found) > MAX_SHOWN else ""
        return "; ".join(list(self.found)[:MAX_SHOWN]) + more


def of_all(accelerator: Accelerator, unreadable: list[Unreadable]) -> list[Unreadable]:
    """What all processes could not read, the same on each; all of them have to ask."""
    if accelerator.num_processes == 1:
        return unreadable
    together: list[Unreadable] = gather_object(unreadable)
    return together

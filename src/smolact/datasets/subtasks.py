"""LeRobot's subtasks (before 0.6): a column `subtask_index`, whose texts are in `meta/subtasks.parquet`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from smolact.datasets import format as layout
from smolact.datasets.edit import EditPlan
from smolact.datasets.metadata import read_numbered
from smolact.datasets.tables import tasks_table
from smolact.errors import DatasetError


class Subtasks:
    """The subtasks of a new dataset: the unchanged table of its sources, or one table merged from theirs.

    Raises:
        DatasetError: a table is corrupt, or only some of the sources have one.
    """

    def __init__(self, plan: EditPlan) -> None:
        paths = [source.meta.root / layout.SUBTASKS for source in plan.sources]
        existing = [path for path in paths if path.is_file()]
        self._same = existing[0] if existing else None
        self._joined: list[str] = []
        self._numbers: list[dict[int, int]] = []
        if len(plan.sources) == 1 or layout.SUBTASK_INDEX not in plan.features():
            return
        if existing and len(existing) < len(paths):
            missing = next(path for path in paths if path not in existing)
            raise DatasetError(
                f"{missing} is missing, and {existing[0]} is there: what '{layout.SUBTASK_INDEX}' numbers can't be joined. "
                "Restore it, or leave the column out: smolact dataset remove-feature"
            )
        tables = [read_numbered(path, "subtask") for path in existing]
        if any(table != tables[0] for table in tables[1:]):
            ordered = [[table[number] for number in sorted(table)] for table in tables]
            self._joined = list(dict.fromkeys(text for texts in ordered for text in texts))
            index = {text: number for number, text in enumerate(self._joined)}
            self._numbers = [{number: index[text] for number, text in table.items()} for table in tables]

    def renumbered(self, source: int, numbers: NDArray[Any], path: Path) -> NDArray[Any]:
        """A source's subtask indices converted to the new dataset's; negative ones (no subtask) are unchanged.

        Raises:
            DatasetError: an index is not in the source's table.
        """
        if not self._numbers:
            return numbers
        known = self._numbers[source]
        unknown = sorted({number for number in np.unique(numbers).tolist() if number >= 0} - known.keys())
        if unknown:
            raise DatasetError(
                f"{path}: {layout.SUBTASK_INDEX} {unknown[0]} is no subtask: {layout.SUBTASKS} lists {len(known)}. Restore it."
            )
        return np.array([known.get(number, number) for number in numbers.tolist()], dtype=numbers.dtype)

    def write(self, folder: Path) -> None:
        """Write the table, if any, below `folder`."""
        path = folder / layout.SUBTASKS
        if self._joined:
            pq.write_table(tasks_table(self._joined, "subtask"), path)
        elif self._same is not None:
            shutil.copyfile(self._same, path)

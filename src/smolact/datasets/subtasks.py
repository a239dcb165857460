"""LeRobot's subtasks (before 0.6): a column `subtask_index`, whose numbers `meta/subtasks.parquet` gives texts to."""

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
    """The subtasks of a new dataset: its sources' table as it is, or one table that joins theirs.

    Raises:
        DatasetError: a table is damaged, or only some of the sources have one.
    """

    def __init__(self, plan: EditPlan) -> None:
        paths = [source.meta.root / layout.SUBTASKS for source in plan.sources]
        there = [path for path in paths if path.is_file()]
        self._same = there[0] if there else None
        self._joined: list[str] = []
        self._numbers: list[dict[int, int]] = []
        if len(plan.sources) == 1 or layout.SUBTASK_INDEX not in plan.features():
            return
        if there and len(there) < len(paths):
            missing = next(path for path in paths if path not in there)
            raise DatasetError(
                f"{missing} is missing, and {there[0]} is there: what '{layout.SUBTASK_INDEX}' numbers can't be joined. "
                "Restore it, or leave the column out: smolact dataset remove-feature"
            )
        tables = [read_numbered(path, "subtask") for path in there]
        if any(table != tables[0] for table in tables[1:]):
            ordered = [[table[number] for number in sorted(table)] for table in tables]
            self._joined = list(dict.fromkeys(text for texts in ordered for text in texts))
            place = {text: number for number, text in enumerate(self._joined)}
            self._numbers = [{number: place[text] for number, text in table.items()} for table in tables]

    def renumbered(self, source: int, numbers: NDArray[Any], path: Path) -> NDArray[Any]:
        """The numbers of a source's frames, as they are in the new dataset; negative ones (no subtask) stay.

        Raises:
            DatasetError: the source's table has no such number.
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
        """Write the table below `folder`, if there is one."""
        path = folder / layout.SUBTASKS
        if self._joined:
            pq.write_table(tasks_table(self._joined, "subtask"), path)
        elif self._same is not None:
            shutil.copyfile(self._same, path)

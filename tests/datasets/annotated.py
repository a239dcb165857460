"""Datasets with LeRobot's annotations, written as its annotation pipeline writes them; and with its older subtasks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from smolact.datasets.tables import tasks_table

LANGUAGE = ("language_persistent", "language_events")
SAY = {"type": "function", "function": {"name": "say", "arguments": {"text": "Here it is."}}}


def record(content: str | None, style: str | None, **more: Any) -> dict[str, Any]:
    """A record, its fields in LeRobot's order; a persistent one has a `timestamp`."""
    time = {"timestamp": more["timestamp"]} if "timestamp" in more else {}
    value = {"role": "assistant", "content": content, "style": style, **time}
    return {**value, "camera": more.get("camera"), "tool_calls": more.get("tool_calls")}


def annotate(root: Path, camera: str, silent: Sequence[int] = ()) -> Path:
    """Give a v3.0 dataset both language columns; the episodes `silent` have none of it, so that their files' types differ."""
    for path in sorted((root / "data").rglob("*.parquet")):
        table = pq.read_table(path)
        rows = table.select(["episode_index", "frame_index", "timestamp"]).to_pylist()
        persistent, events = [], []
        for row in rows:
            episode, number = row["episode_index"], row["frame_index"]
            said = [] if episode in silent else [record(f"Reach, {episode}.", "subtask", timestamp=0.0)]
            happened = []
            if episode not in silent and number == 1:
                happened = [record(f"Where is it, {episode}?", "vqa", camera=camera)]
            if episode not in silent and number == 2 and episode % 2:
                happened = [record(None, None, tool_calls=[SAY])]
            persistent.append(said)
            events.append(happened)
        for name, values in zip(LANGUAGE, (persistent, events), strict=True):
            table = table.append_column(name, pa.array(values))
        pq.write_table(table.replace_schema_metadata(None), path)
    return declare(root, dict.fromkeys(LANGUAGE, "language"))


def number_subtasks(root: Path, subtasks: Sequence[str]) -> Path:
    """Give a v3.0 dataset a column `subtask_index`, counting through `subtasks`, and their table."""
    for path in sorted((root / "data").rglob("*.parquet")):
        table = pq.read_table(path)
        numbers = [number % len(subtasks) for number in table["frame_index"].to_pylist()]
        pq.write_table(table.append_column("subtask_index", pa.array(numbers, pa.int64())), path)
    pq.write_table(tasks_table(subtasks, "subtask"), root / "meta/subtasks.parquet")
    return declare(root, {"subtask_index": "int64"})


def declare(root: Path, features: dict[str, str]) -> Path:
    """List more features in `info.json`: name to dtype."""
    path = root / "meta/info.json"
    info = json.loads(path.read_text())
    info["features"] |= {
        name: {"dtype": dtype, "shape": [1], "names": None} for name, dtype in features.items()
    }
    path.write_text(json.dumps(info))
    return root


def rows_of(root: Path, *names: str) -> list[list[dict[str, Any]]]:
    """These columns of each episode, in order."""
    found: dict[int, list[dict[str, Any]]] = {}
    for path in sorted((root / "data").rglob("*.parquet")):
        for row in pq.read_table(path).select(["episode_index", *names]).to_pylist():
            found.setdefault(row.pop("episode_index"), []).append(row)
    return [found[number] for number in sorted(found)]

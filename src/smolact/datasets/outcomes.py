"""Outcomes of a dataset's episodes: success and final reward, where available.

They are read from a column at an episode's last frame (`next.success`, `success`, `next.reward`, as simulations write
them), or else from our recorder's `meta/smolact_recording.json`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from smolact.datasets import format as layout
from smolact.datasets.sources import Source
from smolact.errors import ConfigError, DatasetError

SUCCESS = ("next.success", "success")
REWARD = ("next.reward", "reward")


def successes(source: Source) -> list[bool | None]:
    """Whether each episode succeeded; None where unknown.

    Raises:
        ConfigError: no episode has an outcome.
        DatasetError: the dataset is corrupt.
    """
    for name in SUCCESS:
        if name in source.meta.features:
            return [bool(value > 0) for value in _last_values(source, name)]
    recorded = {row["episode_index"]: row.get("success") for row in read_log(source.meta.root)}
    outcomes = [recorded.get(episode) for episode in range(source.meta.total_episodes)]
    if not any(isinstance(success, bool) for success in outcomes):
        raise ConfigError(
            f"{source.meta.root} does not say which episodes succeeded: it has no column {' or '.join(SUCCESS)}, and no "
            f"{layout.RECORDING_LOG} that tells. Look at them (smolact dataset viz), and name the others: smolact dataset "
            "delete --episodes=[…]"
        )
    return [success if isinstance(success, bool) else None for success in outcomes]


def rewards(source: Source) -> list[float]:
    """The reward of each episode's last frame.

    Raises:
        ConfigError: the dataset has no rewards.
        DatasetError: it is corrupt.
    """
    for name in REWARD:
        if name in source.meta.features:
            return _last_values(source, name)
    raise ConfigError(
        f"{source.meta.root} has no column {' or '.join(REWARD)}, so its episodes have no rewards."
    )


def read_log(root: Path) -> list[dict[str, Any]]:
    """The recording log's rows, one per recorded episode; empty if there is no log.

    Raises:
        DatasetError: the file is corrupt.
    """
    path = root / layout.RECORDING_LOG
    if not path.is_file():
        return []
    value = layout.read_json(path)
    rows = value.get("episodes") if isinstance(value, dict) else None
    if not isinstance(rows, list) or not all(
        isinstance(row, dict) and type(row.get("episode_index")) is int for row in rows
    ):
        raise DatasetError(f"{path} is damaged. It only holds measurements: remove it.")
    return rows


def _last_values(source: Source, name: str) -> list[float]:
    columns = (source.values(name, episode) for episode in range(source.meta.total_episodes))
    return [float(np.asarray(values[-1], dtype=np.float64).reshape(-1)[0]) for values in columns]

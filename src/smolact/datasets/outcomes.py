"""How a dataset's episodes ended: whether they succeeded, and with what reward, where it says so.

A column of the data says it of an episode's last frame (`next.success`, `success`, `next.reward`, as simulations write
them); else what our recorder kept in `meta/smolact_recording.json`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from smolact.datasets import format as layout
from smolact.datasets.sources import Source
from smolact.datasets.tables import column_array
from smolact.errors import ConfigError, DatasetError

SUCCESS = ("next.success", "success")
REWARD = ("next.reward", "reward")


def successes(source: Source) -> list[bool | None]:
    """Whether each episode succeeded; None where nobody said.

    Raises:
        ConfigError: the dataset says it of no episode.
        DatasetError: it is damaged.
    """
    for name in SUCCESS:
        if name in source.meta.features:
            return [bool(value > 0) for value in _at_the_end(source, name)]
    said = {row["episode_index"]: row.get("success") for row in read_log(source.meta.root)}
    found = [said.get(episode) for episode in range(source.meta.total_episodes)]
    if not any(isinstance(success, bool) for success in found):
        raise ConfigError(
            f"{source.meta.root} does not say which episodes succeeded: it has no column {' or '.join(SUCCESS)}, and no "
            f"{layout.RECORDING_LOG} that tells. Look at them (smolact dataset viz), and name the others: smolact dataset "
            "delete --episodes=[…]"
        )
    return [success if isinstance(success, bool) else None for success in found]


def rewards(source: Source) -> list[float]:
    """The reward of each episode's last frame.

    Raises:
        ConfigError: the dataset has no rewards.
        DatasetError: it is damaged.
    """
    for name in REWARD:
        if name in source.meta.features:
            return _at_the_end(source, name)
    raise ConfigError(
        f"{source.meta.root} has no column {' or '.join(REWARD)}, so its episodes have no rewards."
    )


def read_log(root: Path) -> list[dict[str, Any]]:
    """The rows of the recorder's log, one for each episode that it recorded; none if it never did.

    Raises:
        DatasetError: the file is damaged.
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


def _at_the_end(source: Source, name: str) -> list[float]:
    found = []
    for episode in range(source.meta.total_episodes):
        path = source.meta.root / source.meta.episodes.data_path[episode]
        values = column_array(source.table(episode), name, source.meta.features[name].shape, path)
        found.append(float(np.asarray(values[-1], dtype=np.float64).reshape(-1)[0]))
    return found

"""The robot that a policy was trained on, according to its datasets: names and units of dimensions, cameras, frame rate.

A checkpoint stores it in `embodiment.json`, which LeRobot ignores, for comparison with robots, datasets and clients. No torch here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smolact import durable
from smolact.datasets.format import UNITS, flat_names
from smolact.errors import CheckpointError
from smolact.files import read_json_object
from smolact.types import ACTION, OBSERVATION

if TYPE_CHECKING:
    from smolact.datasets.metadata import LeRobotDatasetMetadata

EMBODIMENT = "embodiment.json"
Names = tuple[str, ...]

_AGAIN = "Copy the checkpoint again, or remove that file: names are then not compared."


@dataclass(frozen=True)
class Embodiment:
    """The robot of a policy's datasets. Features have the policy's names.

    Attributes:
        robot_type: its name in the datasets.
        fps: frames per second.
        cameras: the policy's name of each camera to its name in the dataset.
        names: a vector (or `action`) to the names of its dimensions, in order.
        units: a vector (or `action`) to the units of its dimensions, such as `degrees`.
    """

    robot_type: str | None = None
    fps: float | None = None
    cameras: Mapping[str, str] = field(default_factory=dict)
    names: Mapping[str, Names] = field(default_factory=dict)
    units: Mapping[str, Names] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Write `embodiment.json` into a checkpoint's folder."""
        durable.write_json(
            folder / EMBODIMENT,
            {
                "robot_type": self.robot_type,
                "fps": self.fps,
                "cameras": dict(self.cameras),
                "names": {key: list(names) for key, names in self.names.items()},
                "units": {key: list(units) for key, units in self.units.items()},
            },
        )


def read_embodiment(folder: Path) -> Embodiment | None:
    """Read a checkpoint's `embodiment.json`; None if it has none (LeRobot's have none).

    Raises:
        CheckpointError: the file is damaged.
    """
    path = folder / EMBODIMENT
    if not path.is_file():
        return None
    raw = read_json_object(path, _AGAIN)
    robot_type, fps, cameras = raw.get("robot_type"), raw.get("fps"), raw.get("cameras", {})
    if (
        not isinstance(robot_type, (str, type(None)))
        or not isinstance(fps, (int, float, type(None)))
        or not isinstance(cameras, dict)
        or not all(isinstance(name, str) for name in cameras.values())
    ):
        raise CheckpointError(
            f"{path} is damaged: expected robot_type (text), fps (number) and cameras (names). {_AGAIN}"
        )
    lists = {part: _lists(raw.get(part, {}), f"{path}: {part}") for part in ("names", "units")}
    return Embodiment(robot_type, fps, cameras, **lists)


def embodiment_of(parts: Sequence[tuple[LeRobotDatasetMetadata, Mapping[str, str]]]) -> Embodiment:
    """Return the robot of one training's datasets.

    Args:
        parts: each dataset's metadata, and its names to the policy's; the first dataset that names a vector's dimensions counts.
    """
    names: dict[str, Names] = {}
    units: dict[str, Names] = {}
    cameras: dict[str, str] = {}
    for meta, rename_map in reversed(parts):
        for key, feature in meta.features.items():
            own = rename_map.get(key, key)
            if key in meta.camera_keys:
                cameras[own] = key
            elif own.startswith((OBSERVATION, ACTION)) and feature.dimension_names:
                names[own] = tuple(feature.dimension_names)
                if own_units := flat_names(feature.info.get(UNITS)):
                    units[own] = tuple(own_units)
    types, rates = ({getattr(meta, name) for meta, _ in parts} for name in ("robot_type", "fps"))
    return Embodiment(
        robot_type=types.pop() if len(types) == 1 else None,
        fps=float(rates.pop()) if len(rates) == 1 else None,
        cameras=cameras,
        names=names,
        units=units,
    )


def _lists(value: Any, where: str) -> dict[str, Names]:
    if not isinstance(value, dict) or not all(
        isinstance(names, list) and all(isinstance(name, str) for name in names) for names in value.values()
    ):
        raise CheckpointError(f"{where} is {value!r:.100}, expected lists of texts by feature. {_AGAIN}")
    return {key: tuple(names) for key, names in value.items()}

"""What is being recorded, in rerun's viewer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from smolact.errors import optional_import
from smolact.recording.recorder import Status
from smolact.types import ACTION, is_image_key


def show_in_rerun(name: str) -> Callable[[Status], None]:
    """Open the viewer; returns what shows it a moment: cameras as pictures, numbers as curves.

    Raises:
        MissingDependencyError: rerun is not installed.
    """
    rerun: Any = optional_import("rerun", "viz")
    rerun.init(f"smolact record {name}", spawn=True)

    def show(status: Status) -> None:
        rerun.set_time("frame", sequence=status.frames)
        action = {} if status.action is None else {ACTION: status.action}
        for key, value in {**status.observation, **action}.items():
            rerun.log(
                key.replace(".", "/"), rerun.Image(value) if is_image_key(key) else rerun.Scalars(value)
            )

    return show

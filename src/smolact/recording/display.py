"""Live display of a recording in rerun's viewer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from smolact.datasets.viz_rerun import check_screen
from smolact.errors import optional_import
from smolact.recording.recorder import Status
from smolact.types import ACTION, is_image_key


def show_in_rerun(name: str) -> Callable[[Status], None]:
    """Open the viewer, and return a function that shows a `Status`: cameras as pictures, numbers as curves.

    Raises:
        MissingDependencyError: rerun is not installed.
        DeviceError: there is no screen.
    """
    rerun: Any = optional_import("rerun", "viz")
    check_screen(
        "Leave --display_data out; what was recorded can be looked at afterwards: smolact dataset viz --html."
    )
    rerun.init(f"smolact record {name}", spawn=True)

    def show(status: Status) -> None:
        rerun.set_time("frame", sequence=status.frames)
        action = {} if status.action is None else {ACTION: status.action}
        for key, value in {**status.observation, **action}.items():
            rerun.log(
                key.replace(".", "/"), rerun.Image(value) if is_image_key(key) else rerun.Scalars(value)
            )

    return show

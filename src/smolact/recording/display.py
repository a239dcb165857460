"""Live display of a recording in rerun's viewer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from smolact.datasets.viz_rerun import JPEG_QUALITY, check_screen
from smolact.errors import optional_import
from smolact.recording.recorder import Status
from smolact.types import ACTION, is_image_key

PORT = 9876
"""The port of a viewer, as rerun starts it."""


def show_in_rerun(
    name: str, ip: str | None = None, port: int | None = None, compress: bool = False
) -> Callable[[Status], None]:
    """Open the viewer, and return a function that shows a `Status`: cameras as pictures, numbers as curves.

    Args:
        name: of the recording.
        ip: the machine on which a viewer is open already; None to open one here.
        port: the port of that viewer; None for rerun's.
        compress: send pictures as JPEG.

    Raises:
        MissingDependencyError: rerun is not installed.
        DeviceError: there is no screen.
    """
    rerun: Any = optional_import("rerun", "viz")
    if ip is None:
        check_screen(
            "Open the viewer on another one with the command rerun, and give --display_ip; or leave --display_data out: "
            "smolact dataset viz --html shows what was recorded."
        )
    rerun.init(f"smolact record {name}", spawn=ip is None)
    if ip is not None:
        rerun.connect_grpc(f"rerun+http://{ip}:{PORT if port is None else port}/proxy")

    def picture(value: Any) -> Any:
        image = rerun.Image(value)
        return image.compress(jpeg_quality=JPEG_QUALITY) if compress else image

    def show(status: Status) -> None:
        rerun.set_time("frame", sequence=status.frames)
        action = {} if status.action is None else {ACTION: status.action}
        for key, value in {**status.observation, **action}.items():
            rerun.log(key.replace(".", "/"), picture(value) if is_image_key(key) else rerun.Scalars(value))

    return show

"""`smolact robot find-cameras`: the cameras that answer, how to write them in a command, and a picture of each."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from smolact.cli.command import command
from smolact.cli.main import DONE, FAILED
from smolact.errors import RobotError
from smolact.settings import setting

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

USAGE = "smolact robot find-cameras --output=FOLDER"


@dataclass
class FindCamerasConfig:
    """Settings of `smolact robot find-cameras`."""

    type: str | None = setting(None, "Look for these alone: opencv or intelrealsense.")
    output: Path | None = setting(None, "A folder for a picture of each camera, to see which is which.")


@command(FindCamerasConfig, USAGE)
def run(config: FindCamerasConfig) -> int:
    """Print the cameras, and save a picture of each."""

    from smolact.robots.lerobot_cameras import find_cameras, take_picture

    failures = 0
    for number, camera in enumerate(find_cameras(config.type, _print_error)):
        sys.stdout.write(f'--robot.cameras="{{{camera.setting(f"camera{number}")}}}"\n')
        if config.output is None:
            continue
        path = config.output / f"{camera.type}_{re.sub('[^A-Za-z0-9]+', '_', str(camera.id)).strip('_')}.png"
        try:
            _save(take_picture(camera), path)
        except RobotError as error:  # continue with the other cameras
            failures += 1
            _print_error(str(error))
        else:
            sys.stdout.write(f"  {path}\n")
    return FAILED if failures else DONE


def _print_error(line: str) -> None:
    sys.stderr.write(line + "\n")


def _save(picture: NDArray[np.uint8], path: Path) -> None:
    from PIL import Image

    from smolact.durable import replacing_file

    with replacing_file(path) as temporary:
        Image.fromarray(picture).save(temporary, "png")

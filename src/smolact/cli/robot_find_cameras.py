"""`smolact robot find-cameras`: the cameras that answer, how to write them in a command, and a picture of each."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from smolact import unsupported
from smolact.cli.command import command
from smolact.cli.progress import announce
from smolact.parsing import parse
from smolact.settings import setting

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

USAGE = "smolact robot find-cameras [opencv] --output=FOLDER"


@dataclass
class FindCamerasConfig:
    """Settings of `smolact robot find-cameras`."""

    UNSUPPORTED: ClassVar = unsupported.FIND_CAMERAS

    type: str | None = setting(
        None, "Look for these alone: opencv or intelrealsense. The first word of the command does as well."
    )
    output: Path | None = setting(
        None,
        "A folder for a picture of each camera, to see which is which.",
        aliases=("output-dir", "output_dir"),
    )


@command(FindCamerasConfig, USAGE)
def run(argv: Sequence[str]) -> None:
    """Print the cameras, and save a picture of each."""
    is_word = bool(argv) and not argv[0].startswith("-")
    config = parse(FindCamerasConfig, [f"--type={argv[0]}", *argv[1:]] if is_word else argv)
    kind = "intelrealsense" if config.type == "realsense" else config.type  # LeRobot's two names of them
    announce("Looking at the cameras …")

    from smolact.robots.find_cameras import find_cameras

    for number, (camera, picture) in enumerate(find_cameras(kind, _print_error)):
        sys.stdout.write(f"--robot.cameras='{{{camera.setting(f'camera{number}')}}}'\n")
        if config.output is not None:
            name = re.sub("[^A-Za-z0-9]+", "_", camera.id).strip("_")
            path = config.output / f"{camera.type}_{name}.png"
            _save(picture, path)
            sys.stdout.write(f"  {path}\n")


def _print_error(line: str) -> None:
    sys.stderr.write(line + "\n")


def _save(picture: NDArray[np.uint8], path: Path) -> None:
    from PIL import Image

    from smolact.durable import replacing_file

    with replacing_file(path) as temporary:
        Image.fromarray(picture).save(temporary, "png")

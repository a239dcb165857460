"""Shows a dataset in the viewer of the package `rerun-sdk`, which the extra `viz` installs."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from smolact.datasets.edit import check_episodes
from smolact.datasets.faults import Progress, no_progress
from smolact.datasets.sources import Source
from smolact.datasets.viz import signal_names
from smolact.errors import DeviceError, MissingDependencyError, optional_import

EXTRA = "viz"
JPEG_QUALITY = 85


def show_in_rerun(
    root: str | Path,
    episodes: Sequence[int],
    output: str | Path | None = None,
    progress: Progress = no_progress,
) -> None:
    """Open rerun's viewer on episodes of the dataset in folder `root`, or write them to a file.

    Args:
        root: the dataset, of any version.
        episodes: the episodes to show; each is a separate recording in the viewer.
        output: an .rrd file to write instead of opening the viewer.

    Raises:
        MissingDependencyError: rerun is not installed.
        DeviceError: there is no screen for its viewer.
        ConfigError: an episode does not exist.
        NotFoundError, DatasetError: the dataset does not exist, or is corrupt.
    """
    rerun = import_rerun()
    if output is None:
        check_screen("Write a file for later, --output=NAME.rrd, or a page for the browser, --html.")
    source = Source(root, locked=True)
    check_episodes(source.meta, episodes)
    name = source.meta.root.resolve().name
    stream = rerun.RecordingStream(name)
    if output is None:
        stream.spawn()
    else:
        Path(output).parent.mkdir(parents=True, exist_ok=True)
        stream.save(str(output))
    for done, number in enumerate(episodes):
        progress("episodes", done, len(episodes))
        _log(rerun, stream, source, number)
    stream.flush()


def import_rerun() -> Any:
    """Import rerun, or raise a `MissingDependencyError` that names the alternative."""
    try:
        return optional_import("rerun", EXTRA)
    except MissingDependencyError as error:
        raise MissingDependencyError(
            f"{error}; or write a page for the browser instead: add --html."
        ) from error


def check_screen(instead: str) -> None:
    """Raise a `DeviceError` that says what to do `instead`, unless a viewer can open here: rerun itself would crash in a thread."""
    if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise DeviceError(
            f"Rerun's viewer needs a screen, and this machine offers none (no DISPLAY). {instead}"
        )


def _log(rerun: Any, stream: Any, source: Source, number: int) -> None:
    meta, top = source.meta, f"episode_{number}"
    tasks = source.values("task_index", number).reshape(-1)
    signals = {
        name: (names, source.values(name, number).reshape(len(tasks), -1))
        for name, names in signal_names(meta).items()
    }
    cameras = {key: source.images(key, number) for key in meta.color_keys}
    for frame in range(len(tasks)):
        stream.set_time("frame", sequence=frame)
        stream.set_time("time", duration=frame / meta.fps)
        for key, images in cameras.items():
            stream.log(f"{top}/{key}", rerun.Image(next(images)).compress(jpeg_quality=JPEG_QUALITY))
        for key, (names, values) in signals.items():
            for index, name in enumerate(names):
                stream.log(f"{top}/{key}/{name or index}", rerun.Scalars(float(values[frame, index])))
        if frame == 0 or tasks[frame] != tasks[frame - 1]:
            stream.log(f"{top}/task", rerun.TextLog(meta.tasks[int(tasks[frame])]))

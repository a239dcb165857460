"""H.264 video files (mp4) from pictures, for browsers."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from smolact.durable import replacing_file
from smolact.errors import VideoError

CODEC = "libx264"


def write_video(path: str | Path, frames: Sequence[NDArray[np.uint8]], fps: int) -> None:
    """Write frames (H, W, 3) uint8, RGB, to `path`; the last row or column of an odd side is repeated.

    Raises:
        VideoError: there is no frame, the frames differ in size, or this build of PyAV has no H.264 encoder.
        WriteError: the disk is full or refused.
    """
    shapes = {frame.shape for frame in frames}
    if len(shapes) != 1:
        raise VideoError(f"A video {path} needs pictures of one size, and got {sorted(shapes) or 'none'}.")
    if CODEC not in av.codecs_available:
        raise VideoError(
            f"This PyAV can't write {path}: it was built without {CODEC}. Run: pip install -U av"
        )
    height, width, _ = shapes.pop()
    odd = ((0, height % 2), (0, width % 2), (0, 0))
    with replacing_file(Path(path)) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        stream: Any = container.add_stream(
            CODEC, rate=Fraction(fps), options={"crf": "18", "preset": "veryfast"}
        )
        stream.height, stream.width, stream.pix_fmt = height + height % 2, width + width % 2, "yuv420p"
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.pad(frame, odd, mode="edge"), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())

"""Measurements, evaluations and their videos as event files for TensorBoard: `tensorboard --logdir RUN`.

Each event is appended and the file closed, so that a killed run keeps all of them and no event waits in memory.
tensorboardX's own `SummaryWriter` writes in a thread with a queue of ten: on a full disk the thread dies silently, and
training blocks at the eleventh event. Only its messages and its checksum are used.
"""

from __future__ import annotations

import io
import struct
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from PIL import Image
from tensorboardX.proto.event_pb2 import Event as Record
from tensorboardX.proto.event_pb2 import SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import masked_crc32c

from smolact.datasets.video import VideoReader
from smolact.training.tracking import Evaluated, Event, Measured, scalars, videos

FOLDER = "tensorboard"
VERSION = "brain.Event:2"
MAX_FRAMES, MAX_WIDTH = 48, 192
"""Maximum number of pictures in a GIF, and maximum width in pixels."""
GIF_SECONDS = 6.0


class TensorBoardTracker:
    """Event files in `RUN/tensorboard`; when a run resumes, TensorBoard drops later steps of earlier files."""

    def __init__(self, run: Path, step: int = 0) -> None:
        self.path = run / FOLDER / f"events.out.tfevents.{time.time():020.9f}"
        self.step = step

    def __call__(self, event: Event) -> None:
        """Write the event, if it contains metrics."""
        if not isinstance(event, Measured | Evaluated):
            return
        values = [Summary.Value(tag=name, simple_value=value) for name, value in scalars(event).items()]
        if isinstance(event, Evaluated):
            values += [
                Summary.Value(tag=name, image=_gif(Path(video))) for name, video in videos(event).items()
            ]
        self._write(Record(step=event.step, summary=Summary(value=values)))

    def _write(self, record: Any) -> None:
        records = [record]
        if not self.path.exists():
            self.path.parent.mkdir(exist_ok=True)
            start = SessionLog(status=SessionLog.START)
            records = [
                Record(file_version=VERSION),
                Record(step=self.step + 1, session_log=start),  # earlier files are invalid from this step on
                record,
            ]
        with self.path.open("ab") as file:
            for item in records:
                item.wall_time = time.time()
                file.write(framed(item.SerializeToString()))


def framed(data: bytes) -> bytes:
    """Return a TFRecord: length, checksum of the length, data, checksum of the data."""
    length = struct.pack("<Q", len(data))
    return length + _checksum(length) + data + _checksum(data)


def _checksum(data: bytes) -> bytes:
    return struct.pack("<I", masked_crc32c(data))


def _gif(path: Path) -> Any:
    """Return a video as a GIF, which TensorBoard can show."""
    with closing(VideoReader(path)) as reader:
        count = min(len(reader), MAX_FRAMES)
        last = max(1, count - 1)
        frames = reader.frames([(len(reader) - 1) * index // last for index in range(count)])
    first, *others = pictures = [_small(Image.fromarray(frame)) for frame in frames]
    file, milliseconds = io.BytesIO(), round(1000 * GIF_SECONDS / len(pictures))
    first.save(file, format="GIF", save_all=True, append_images=others, duration=milliseconds, loop=0)
    return Summary.Image(
        width=first.width, height=first.height, colorspace=3, encoded_image_string=file.getvalue()
    )


def _small(picture: Image.Image) -> Image.Image:
    picture.thumbnail((MAX_WIDTH, picture.height))
    return picture.quantize(
        128, method=Image.Quantize.FASTOCTREE
    )  # the default method takes ten times as long

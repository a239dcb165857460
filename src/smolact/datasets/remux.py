"""Cuts and joins videos without re-encoding: packets are copied, no frame is decoded.

A cut can be copied if it begins with a key frame and its packets are contiguous in the file, so that none of them needs a
frame outside. The decoder configuration (`PacketIndex.codec`) must be the same throughout a file.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from smolact.datasets.video import open_container
from smolact.errors import VideoError

MAX_DELAY = 16  # frames that a decoder may reorder; the limit of H.264 and HEVC


@dataclass(frozen=True)
class Cut:
    """`count` frames of a video file, starting at frame `first`."""

    path: Path
    first: int
    count: int


class PacketIndex:
    """The packets of a video file, in storage order.

    Raises:
        VideoError: the file is missing or corrupt.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with open_video(path) as container:
            stream = container.streams.video[0]
            context = stream.codec_context
            self.codec = (context.name, context.width, context.height, context.pix_fmt, context.extradata)
            try:
                packets = [
                    (packet.pts, packet.dts, packet.is_keyframe, packet.size)
                    for packet in container.demux(stream)
                    if packet.pts is not None
                ]
            except av.FFmpegError as error:
                raise VideoError(
                    f"{path} can't be read ({error}): it is damaged or cut off. Fetch it again."
                ) from error
        if not packets:
            raise VideoError(f"{path} has no frames: it is damaged or cut off. Fetch it again.")
        times, self.decoding_times, keys, sizes = zip(*packets, strict=True)
        self.frame_numbers: NDArray[np.int64] = np.argsort(np.argsort(times))  # packet to frame number
        self.keys, self.sizes = np.array(keys), np.array(sizes)

    def packets(self, cut: Cut) -> tuple[int, int] | None:
        """The first packet of `cut` and the one after its last; None if the cut can't be copied.

        Raises:
            VideoError: the file has too few frames.
        """
        if cut.first + cut.count > len(self.keys):
            raise VideoError(
                f"{self.path} has {len(self.keys)} frames, but an episode needs {cut.first} to {cut.first + cut.count}: "
                "it is cut off, or not the file that the metadata describes."
            )
        inside = np.flatnonzero(
            (self.frame_numbers >= cut.first) & (self.frame_numbers < cut.first + cut.count)
        )
        begin, end = int(inside[0]), int(inside[-1]) + 1
        adjacent = end - begin == cut.count and self.decoding_times[begin] is not None
        return (
            (begin, end) if adjacent and self.keys[begin] and self.frame_numbers[begin] == cut.first else None
        )


class Joiner:
    """Writes a video file of cuts of other files in sequence, one frame every 1/fps seconds from 0."""

    def __init__(self, path: Path, fps: float) -> None:
        self.path, self.frames, self.bytes = path, 0, 0
        self._rate = Fraction(fps).limit_denominator(1001 * 1000)
        self._codec: Any = None
        self._output: Any = av.open(str(path), "w", format="mp4")
        self._stream: Any = None

    def fits(self, index: PacketIndex) -> bool:
        """Whether frames of the file of `index` can be appended."""
        return self._codec is None or bool(self._codec == index.codec)

    def add(self, index: PacketIndex, begin: int, end: int) -> None:
        """Append the packets `begin` to `end` returned by `PacketIndex.packets`.

        Raises:
            VideoError: the packets can't be read.
        """
        with open_video(index.path) as source:
            stream = source.streams.video[0]
            if self._stream is None:
                self._codec = index.codec
                self._stream = _add_stream_like(self._output, stream)
                self._stream.time_base = 1 / self._rate
            try:
                source.seek(int(index.decoding_times[begin]), stream=stream, backward=True)
                self._copy(index, begin, end, source.demux(stream))
            except av.FFmpegError as error:
                raise VideoError(f"{index.path} can't be copied ({error}): it is damaged.") from error

    def close(self) -> None:
        """Finish the file."""
        self._output.close()

    def _copy(self, index: PacketIndex, begin: int, end: int, packets: Any) -> None:
        first, number = int(index.frame_numbers[begin]), begin
        reordered = bool((np.diff(index.frame_numbers) < 0).any())
        for packet in packets:
            if packet.pts is None or packet.dts is None:
                continue
            if number == begin and packet.dts != index.decoding_times[begin]:
                continue  # a seek may land earlier
            shown = self.frames + int(index.frame_numbers[number]) - first
            decoded = self.frames + number - begin - (MAX_DELAY if reordered else 0)
            packet.stream = self._stream
            packet.time_base = 1 / self._rate
            packet.pts, packet.dts, packet.duration = shown, decoded, 1
            self._output.mux(packet)
            number += 1
            if number == end:
                break
        if number != end:
            raise VideoError(
                f"{index.path}: {end - number} frames are not where its index says: it is damaged."
            )
        self.frames += end - begin
        self.bytes += int(index.sizes[begin:end].sum())


@contextlib.contextmanager
def open_video(path: Path) -> Iterator[Any]:
    """Open a container that has a video stream.

    Raises:
        VideoError: the file is missing, corrupt, or without a video stream.
    """
    try:
        container = open_container(path)
    except VideoError:
        raise
    except (av.FFmpegError, OSError, ValueError) as error:
        raise VideoError(f"{path} can't be read ({error}): it is damaged. Fetch it again.") from error
    with container:
        yield container


def _add_stream_like(output: Any, stream: Any) -> Any:
    """Add a stream to `output` for packets of `stream`."""
    if hasattr(output, "add_stream_from_template"):  # PyAV 14 and later
        return output.add_stream_from_template(stream, opaque=True)
    return output.add_stream(template=stream)

"""Video files: frames by number (position in presentation order, not timestamp), and a streaming encoder."""

from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from smolact.datasets.encoders import ENCODERS, check_encoder, encoder_options, quiet_encoder
from smolact.errors import ConfigError, VideoError, WriteError
from smolact.openable import check_regular

Image = NDArray[np.uint8]
Read = TypeVar("Read")


# Ignore metadata that is not UTF-8; PyAV 19 always does, without this argument.
_LENIENT: dict[str, Any] = {"metadata_errors": "ignore"} if int(av.__version__.split(".")[0]) < 19 else {}


class VideoReader:
    """Frames of a video file, by number.

    One thread decodes at a time, and the decoder has no threads of its own, so a forked process may drop the reader.

    Raises:
        VideoError: the file is missing, damaged, or has no video stream.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        self._container: Any = None
        self._decoded: Iterator[Any] = iter(())
        self._next = -1  # the number of the next frame of `_decoded`
        self._reformatter = VideoReformatter()
        self._open()
        self._pts, self._keys = _timeline(self._container, self.path)

    def __len__(self) -> int:
        return len(self._pts)

    def frames(self, numbers: Sequence[int] | NDArray[np.int64]) -> Image:
        """The frames with these numbers, in this order, (n, H, W, 3) uint8 RGB.

        Raises:
            VideoError: a number is past the end, or decoding failed.
        """
        wanted = np.asarray(numbers, dtype=np.int64)
        unique, inverse = np.unique(wanted, return_inverse=True)

        def decode() -> Image:
            images = [self._to_rgb(self._frame(int(number))) for number in unique]
            return np.stack(images) if images else np.empty((0, 0, 0, 3), dtype=np.uint8)

        decoded = self._locked_read(unique, decode)
        return decoded if np.array_equal(unique, wanted) else decoded[inverse]

    def layouts(self, numbers: Sequence[int] | NDArray[np.int64]) -> set[tuple[int, int, str]]:
        """The (height, width, FFmpeg pixel format) of these frames, decoded but not converted.

        Raises:
            VideoError: see `frames`.
        """
        wanted = np.unique(np.asarray(numbers, dtype=np.int64))

        def decode() -> set[tuple[int, int, str]]:
            frames = (self._frame(int(number)) for number in wanted)
            return {(frame.height, frame.width, frame.format.name) for frame in frames}

        return self._locked_read(wanted, decode)

    def close(self) -> None:
        """Close the file; the next read reopens it."""
        with self._lock:
            self._close()

    def _locked_read(self, numbers: NDArray[np.int64], read: Callable[[], Read]) -> Read:
        """Call `read` for ascending `numbers`; close the file if it fails."""
        if numbers.size and (numbers[0] < 0 or numbers[-1] >= len(self)):
            raise VideoError(
                f"{self.path} has {len(self)} frames, but frame {int(numbers[-1])} is asked for: the file is cut off "
                "or is not the one that the metadata describes. Fetch it again."
            )
        with self._lock:
            if self._container is None:
                self._open()
            try:
                return read()
            except BaseException as error:
                self._close()
                if isinstance(error, (av.FFmpegError, ValueError)) and not isinstance(error, VideoError):
                    raise self._decode_error(error) from error
                raise

    def _open(self) -> None:
        try:
            self._container = open_container(self.path)
        except VideoError:
            raise
        except (av.FFmpegError, OSError, ValueError) as error:
            raise self._decode_error(error) from error
        self._stream.codec_context.thread_count = 1
        self._next = -1

    @property
    def _stream(self) -> Any:
        return self._container.streams.video[0]

    def _close(self) -> None:
        self._decoded = iter(())
        if self._container is not None:
            self._container.close()
            self._container = None

    def _to_rgb(self, frame: Any) -> Image:
        return np.asarray(self._reformatter.reformat(frame, format="rgb24").to_ndarray(), dtype=np.uint8)

    def _frame(self, number: int) -> Any:
        key = int(np.searchsorted(self._keys, number, side="right")) - 1
        start = int(self._keys[key]) if key >= 0 else 0
        if not start <= self._next <= number:
            self._container.seek(int(self._pts[start]), stream=self._stream, backward=True)
            self._decoded = self._container.decode(self._stream)
        target = int(self._pts[number])
        for frame in self._decoded:
            if frame.pts is None or frame.pts < target:
                continue
            if frame.pts > target:
                break
            self._next = number + 1
            return frame
        self._next = -1
        raise VideoError(
            f"{self.path}: frame {number} of {len(self)} is not where the file's index says: it is damaged or cut off. "
            "Fetch it again, or restore this file."
        )

    def _decode_error(self, error: Exception) -> VideoError:
        return VideoError(
            f"{self.path} can't be decoded ({error}): it is damaged or cut off. Fetch it again."
        )


def open_container(path: Path) -> Any:
    """Open a container that has a video stream, for reading.

    Raises:
        VideoError: the file is missing, or without a video stream.
        FFmpegError, OSError, ValueError: it can't be read.
    """
    try:
        check_regular(path)
        container: Any = av.open(str(path), **_LENIENT)
    except FileNotFoundError as error:
        raise VideoError(f"{path} is missing. Fetch the dataset again, or restore this file.") from error
    if not container.streams.video or container.streams.video[0].codec_context is None:
        container.close()
        raise VideoError(f"{path} has no picture that FFmpeg can decode. Fetch it again, or restore it.")
    return container


def _timeline(container: Any, path: Path) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The presentation times of all frames, in order, and the numbers of the keyframes."""
    stream = container.streams.video[0]
    entries = list(getattr(stream, "index_entries", ()))  # PyAV 14 and later
    if entries and len(entries) == stream.frames and not stream.codec_context.has_b_frames:
        times = np.array([entry.timestamp for entry in entries], dtype=np.int64)
        keys = np.array([entry.is_keyframe for entry in entries])
        if times[0] == stream.start_time and (np.diff(times) > 0).all():
            return times, np.flatnonzero(keys)
    try:  # storage order is not presentation order: read every packet
        packets = [
            (packet.pts, packet.is_keyframe) for packet in container.demux(stream) if packet.pts is not None
        ]
    except av.FFmpegError as error:
        raise VideoError(
            f"{path} can't be read ({error}): it is damaged or cut off. Fetch it again."
        ) from error
    if not packets:
        raise VideoError(
            f"{path} has no frames: it is damaged or cut off. Fetch it again, or restore this file."
        )
    packets.sort()
    times, keys = (np.array(column) for column in zip(*packets, strict=True))
    return times.astype(np.int64), np.flatnonzero(keys)


class VideoWriter:
    """Encode RGB frames into an mp4 file, one by one. The defaults are LeRobot's.

    Args:
        path: the file to write; partial until `close`.
        fps: frames per second.
        width, height: even numbers (chroma has half the resolution).
        codec: a name of `encoders.ENCODERS`: `libsvtav1`, `h264`, which any player shows, or a hardware encoder.
        g: the keyframe interval in frames.
        crf: the quality, lower is better.
        preset: the encoder's speed; None for LeRobot's choice.

    Raises:
        ConfigError: this build of FFmpeg lacks the encoder, or it can't encode this size.
        VideoError: a frame could not be encoded.
        WriteError: the disk is full or refused.
    """

    def __init__(
        self,
        path: str | Path,
        fps: float,
        width: int,
        height: int,
        codec: str = "libsvtav1",
        g: int = 2,
        crf: int = 30,
        preset: int | str | None = None,
    ) -> None:
        self.path = Path(path)
        self.num_frames = 0
        check_encoder(codec, width, height)
        self._size = (height, width, 3)
        try:
            self._container: Any = av.open(str(path), "w", format="mp4")
            self._stream = self._container.add_stream(
                codec,
                Fraction(fps).limit_denominator(1001 * 1000),
                options=encoder_options(codec, g, crf, preset),
            )
        except (av.FFmpegError, OSError) as error:
            raise self._write_error(error) from error
        self._stream.width, self._stream.height = width, height
        self._stream.pix_fmt = ENCODERS[codec].pix_fmt
        try:
            with quiet_encoder():
                self._stream.codec_context.open()
        except (av.FFmpegError, OSError) as error:
            self.abort()
            raise ConfigError(
                f"{self.path}: the video codec '{codec}' can't be opened once more ({error.strerror}): a device encodes "
                "so many videos at once. Use --dataset.vcodec=h264, or fewer cameras."
            ) from error

    def write(self, image: Image) -> None:
        """Encode a frame, (H, W, 3) uint8."""
        if image.shape != self._size or image.dtype != np.uint8:
            raise VideoError(
                f"{self.path}: a frame must be {self._size} uint8, found {image.shape} {image.dtype}. Convert it first."
            )
        try:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            self._container.mux(self._stream.encode(frame))
        except (av.FFmpegError, OSError) as error:
            raise self._write_error(error) from error
        self.num_frames += 1

    def close(self) -> None:
        """Finish the file; a second call does nothing."""
        if self._container is None:
            return
        container, self._container = self._container, None
        try:
            container.mux(self._stream.encode(None))
            container.close()
        except (av.FFmpegError, OSError) as error:
            raise self._write_error(error) from error

    def abort(self) -> None:
        """Stop encoding and remove the file."""
        container, self._container = self._container, None
        if container is not None:
            # Closing writes the index, and may fail on a full disk.
            with contextlib.suppress(av.FFmpegError, OSError):
                self._stream.encode(None)  # flush, or SVT-AV1 logs an error
                container.close()
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def _write_error(self, error: Exception) -> VideoError | WriteError:
        if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
            return WriteError(
                error.errno,
                f"{self.path} could not be written ({error.strerror}): the disk is full or refused.",
            )
        return VideoError(f"{self.path} could not be encoded ({error}). Try the codec 'h264'.")


_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO)

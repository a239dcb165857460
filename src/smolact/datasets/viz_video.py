"""A camera's episode as a small mp4 for browsers, remuxed if possible, otherwise encoded."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np

from smolact.datasets.remux import Index, Joiner
from smolact.datasets.sources import Source
from smolact.datasets.video import Image, VideoWriter
from smolact.errors import ConfigError

BROWSER_DECODERS = {"h264", "av1", "libdav1d", "libaom-av1", "vp9", "libvpx-vp9"}
"""PyAV's decoders of codecs that browsers play."""
BROWSER_PIXEL_FORMATS = {"yuv420p", "yuvj420p"}
KEYFRAME_INTERVAL, CRF = 12, 23


class BrowserVideos:
    """The episodes of a dataset as browser videos; each video file's index is read once.

    Raises:
        ConfigError: encoding is needed, and this build of FFmpeg has no encoder for browsers.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._indices: dict[Path, Index] = {}

    def encode_episode(self, key: str, episode: int) -> bytes:
        """An episode of camera `key` as mp4; frame i is shown from i/fps to (i + 1)/fps.

        Raises:
            DatasetError: the images can't be decoded, or are not as many as the rows.
            ConfigError: see the class.
        """
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "film.mp4"
            if not self._remux(key, episode, path):
                self._encode(key, episode, path)
            return path.read_bytes()

    def _remux(self, key: str, episode: int, path: Path) -> bool:
        if self._source.meta.features[key].dtype != "video":
            return False
        cut = self._source.cut(key, episode)
        if cut.path not in self._indices:
            self._indices[cut.path] = Index(cut.path)
        index = self._indices[cut.path]
        decoder, _, _, pixels, _ = index.kind
        packets = index.packets(cut)
        if decoder not in BROWSER_DECODERS or pixels not in BROWSER_PIXEL_FORMATS or packets is None:
            return False
        joiner = Joiner(path, self._source.meta.fps)
        try:
            joiner.add(index, *packets)
        finally:
            joiner.close()
        return True

    def _encode(self, key: str, episode: int, path: Path) -> None:
        images = map(pad_to_even, self._source.images(key, episode))
        first = next(images)
        height, width, _ = first.shape
        codec = browser_encoder()
        with VideoWriter(
            path, self._source.meta.fps, width, height, codec, g=KEYFRAME_INTERVAL, crf=CRF
        ) as writer:
            for image in _prepend(first, images):
                writer.write(image)


def browser_encoder() -> str:
    """The encoder for browser videos: H.264, which every browser plays, or else AV1.

    Raises:
        ConfigError: this build of FFmpeg has neither.
    """
    for name in ("libx264", "h264", "libsvtav1"):
        if name in av.codecs_available:
            return name
    raise ConfigError(
        "The pictures must be encoded for the browser, and this build of FFmpeg has no encoder for it (libx264, "
        "libsvtav1). Install PyAV from its wheels: pip install --force-reinstall av"
    )


def pad_to_even(image: Image) -> Image:
    """An image (H, W, 3), padded to an even height and width, as video requires."""
    height, width, _ = image.shape
    if height % 2 == 0 and width % 2 == 0:
        return image
    return np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")


def _prepend(first: Image, images: Iterator[Image]) -> Iterator[Image]:
    yield first
    yield from images

"""Encoding and safe decoding of JPEG images: dimensions are read and limited before a pixel is decoded.

Only baseline JPEG is accepted, which cameras and Pillow write. A progressive JPEG of a few kilobytes can occupy a decoder for
seconds, since its number of scans is not bounded.
"""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, JpegImagePlugin

from smolact_client.errors import ProtocolError

QUALITY = 90

_BASELINE = (0xC0, 0xC1)
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_STANDALONE = {0x01, *range(0xD0, 0xD8)}
_SCAN, _END = 0xDA, 0xD9


def encode_jpeg(image: NDArray[np.uint8], quality: int = QUALITY) -> bytes:
    """Encode an image (H, W, 3) uint8 as baseline JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def jpeg_size(data: bytes) -> tuple[int, int]:
    """Read height and width from the headers.

    Raises:
        ProtocolError: it is not a baseline JPEG with three channels.
    """
    if data[:2] != b"\xff\xd8":
        raise ProtocolError("A picture is said to be a JPEG, and does not begin like one.")
    offset = 2
    while offset + 4 <= len(data):
        marker = data[offset + 1]
        if data[offset] != 0xFF or marker in (_SCAN, _END):
            break
        if marker == 0xFF or marker in _STANDALONE:
            offset += 1 if marker == 0xFF else 2
            continue
        (length,) = struct.unpack_from(">H", data, offset + 2)
        if marker in _FRAMES:
            if marker not in _BASELINE or length < 8 or offset + 10 > len(data):
                raise ProtocolError("A picture is a JPEG of another kind: expected a baseline one.")
            depth, height, width, colours = struct.unpack_from(">BHHB", data, offset + 4)
            if depth != 8 or colours != 3 or not height or not width:
                raise ProtocolError(
                    f"A JPEG has {colours} colours of {depth} bits and {height}×{width} pixels: expected 3 of 8 bits."
                )
            return height, width
        offset += 2 + max(2, length)
    raise ProtocolError("A JPEG ends before it tells its size.")


def decode_jpeg(data: bytes, max_pixels: int) -> NDArray[np.uint8]:
    """Return the image (H, W, 3) uint8.

    Raises:
        ProtocolError: the JPEG is corrupt, not baseline, or has more than `max_pixels`.
    """
    height, width = jpeg_size(data)
    if height * width > max_pixels:
        raise ProtocolError(
            f"A JPEG of {height}×{width} has more than the {max_pixels} pixels that are taken."
        )
    try:
        # Not `Image.open`, which would import and try readers of other formats.
        with JpegImagePlugin.JpegImageFile(io.BytesIO(data)) as image:
            if image.size != (width, height) or image.mode != "RGB":
                raise ProtocolError("A JPEG tells two sizes, or is not in colour.")
            pixels: NDArray[Any] = np.asarray(image)
    except ProtocolError:
        raise
    except Exception as error:  # decoders raise errors of any type
        raise ProtocolError(f"A JPEG is damaged ({type(error).__name__}).") from error
    return pixels

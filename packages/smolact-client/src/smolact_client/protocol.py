"""The wire protocol: a fixed header, a small msgpack map, raw buffers. One message is one binary WebSocket message.

    0   4s  magic           b"SMOL"
    4   u16 version         1
    6   u16 kind            see `MessageKind`
    8   u64 session         assigned by the server in its welcome; 0 before
    16  u64 sequence        the sender's message count in this session, from 1
    24  u64 observation     the sequence of the observation that a message belongs to, or 0
    32  u32 map length      bytes of the msgpack map that follows the header
    36  u32 buffers length  bytes of the buffers that follow the map

Everything is little-endian. The map's key `arrays` describes the buffers in their order, without gaps: {name: [dtype,
shape]}. A dtype is one of `DTYPES`, or `jpeg`, whose shape is its number of bytes. Before anything is allocated, the lengths
are checked against the message and each shape against its buffer; nothing in a message is executed or imported.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, NamedTuple

import msgpack
import numpy as np
from numpy.typing import NDArray

from smolact_client.errors import ProtocolError, VersionMismatchError
from smolact_client.images import decode_jpeg

MAGIC = b"SMOL"
VERSION = 1
HEADER = struct.Struct("<4sHHQQQII")

MAX_MESSAGE = 16 * 2**20
MAX_MAP = 64 * 2**10
MAX_DEPTH = 4
MAX_KEYS = 64
MAX_DIMENSIONS = 4
MAX_TEXT = 16 * 2**10
MAX_PIXELS = 2**22
"""The limit of one image: 2048×2048."""
PIECE = 2**18
"""Maximum bytes of a WebSocket frame of a fragmented message."""

DTYPES: dict[str, np.dtype[Any]] = {
    "u8": np.dtype("u1"),
    "i32": np.dtype("<i4"),
    "i64": np.dtype("<i8"),
    "f16": np.dtype("<f2"),
    "f32": np.dtype("<f4"),
    "bool": np.dtype("?"),
}
JPEG = "jpeg"
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class MessageKind(IntEnum):
    """The kind of a message."""

    HELLO = 1  # client: its name, the robot's features
    WELCOME = 2  # server: session, schema, limits
    READY = 3  # server: the policy is warm
    OBSERVATION = 4  # client: a request for actions
    CHUNK = 5  # server: the actions
    RESET = 6  # client: an episode begins; the waiting request is dropped
    ERROR = 7  # server: {code, message}


class Jpeg(NamedTuple):
    """An image that is not yet decoded."""

    data: bytes

    def decode(self, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
        """Return the image (H, W, 3) uint8.

        Raises:
            ProtocolError: the JPEG is corrupt or too large.
        """
        return decode_jpeg(self.data, max_pixels)


Array = NDArray[Any] | Jpeg


@dataclass(frozen=True)
class Message:
    """One message of either side.

    Attributes:
        kind, session, sequence, observation: see the header.
        fields: the map without `arrays`: strings, numbers, lists and maps of them.
        arrays: name to array or JPEG.
    """

    kind: MessageKind
    session: int = 0
    sequence: int = 0
    observation: int = 0
    fields: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, Array] = field(default_factory=dict)


def encode(message: Message) -> bytes:
    """Return the bytes of a message.

    Raises:
        ProtocolError: it contains an unsupported type, or exceeds the size that the receiver accepts.
    """
    return b"".join(parts(message))


def parts(message: Message) -> list[bytes | memoryview]:
    """Return the buffers of a message without copying arrays: header and map, and a view of each array.

    Raises:
        ProtocolError: as `encode`.
    """
    descriptions: dict[str, Any] = {}
    buffers: list[bytes | memoryview] = []
    for name, array in message.arrays.items():
        if isinstance(array, Jpeg):
            descriptions[name] = [JPEG, [len(array.data)]]
            buffers.append(array.data)
            continue
        dtype = array.dtype.newbyteorder("<") if array.dtype.byteorder == ">" else array.dtype
        if dtype not in _NAMES:
            raise ProtocolError(
                f"'{name}' is {array.dtype}: the wire carries {', '.join(DTYPES)}. Convert it first."
            )
        descriptions[name] = [_NAMES[dtype], list(array.shape)]
        buffers.append(np.ascontiguousarray(array, dtype).data.cast("B"))
    try:
        fields = msgpack.packb({**message.fields, "arrays": descriptions}, use_bin_type=True)
    except (TypeError, ValueError, OverflowError) as error:
        raise ProtocolError(f"A message holds what msgpack does not carry: {error}.") from error
    length = sum(map(len, buffers))
    header = HEADER.pack(
        MAGIC,
        VERSION,
        message.kind,
        message.session,
        message.sequence,
        message.observation,
        len(fields),
        length,
    )
    if len(fields) > MAX_MAP or HEADER.size + len(fields) + length > MAX_MESSAGE:
        raise ProtocolError(
            f"A message has {(HEADER.size + len(fields) + length) / 2**20:.1f} MiB: at most {MAX_MESSAGE // 2**20} are taken, "
            f"{MAX_MAP // 2**10} KiB of them beside the arrays. Send pictures as JPEG, or smaller ones."
        )
    return [header + fields, *buffers]


def frames(message: Message) -> bytes | list[memoryview]:
    """Return a message as a WebSocket's `send` accepts it: in one frame, or in several of at most `PIECE` bytes.

    Each side copies a frame several times. A large frame is copied through freshly allocated memory, and the receiver starts on
    it after its last byte; fragments stay in a core's cache, and are unmasked while the next ones are in transit.

    Raises:
        ProtocolError: as `encode`.
    """
    buffers = parts(message)
    if sum(map(len, buffers)) <= PIECE:
        return b"".join(buffers)
    views = [memoryview(buffer) for buffer in buffers]
    return [view[start : start + PIECE] for view in views for start in range(0, len(view), PIECE)]


class Header(NamedTuple):
    """The fixed header of a message.

    Attributes:
        kind, session, sequence, observation: as in the message.
        map_length, length: bytes of the map and of the buffers.
    """

    kind: MessageKind
    session: int
    sequence: int
    observation: int
    map_length: int
    length: int

    @property
    def total(self) -> int:
        """The message's bytes."""
        return HEADER.size + self.map_length + self.length


def read_header(data: bytes | memoryview) -> Header:
    """Parse the header at the start of `data`.

    Raises:
        VersionMismatchError: it has another version.
        ProtocolError: `data` is not a message, or the message is too large.
    """
    if len(data) < HEADER.size:
        raise ProtocolError(f"A message begins with {len(data)} bytes: its header alone takes {HEADER.size}.")
    magic, version, kind, *numbers = HEADER.unpack_from(data)
    if magic != MAGIC:
        raise ProtocolError(f"A message begins with {magic!r}: expected {MAGIC!r}.")
    if version != VERSION:
        raise VersionMismatchError(
            f"A message is of version {version} of the protocol, and this side speaks {VERSION}. "
            "Install the same version of smolact-client on both."
        )
    if kind not in MessageKind._value2member_map_:
        raise ProtocolError(f"There is no message of kind {kind}.")
    header = Header(MessageKind(kind), *numbers)
    if header.total > MAX_MESSAGE or header.map_length > MAX_MAP:
        raise ProtocolError(
            f"A message tells of {header.total} bytes, {header.map_length} of them map: at most {MAX_MESSAGE} and {MAX_MAP} "
            "are taken."
        )
    return header


def decode(data: bytes | memoryview) -> Message:
    """Parse the message in `data`. Arrays are read-only views of it; JPEGs are not decoded.

    Raises:
        VersionMismatchError: it has another version.
        ProtocolError: `data` is not a message.
    """
    header = read_header(data)
    if header.total != len(data):
        raise ProtocolError(f"A message has {len(data)} bytes, and its header tells of {header.total}.")
    view = memoryview(data).toreadonly()
    body = HEADER.size + header.map_length
    fields = _read_map(view[HEADER.size : body])
    arrays = _read_arrays(fields.pop("arrays", {}), view[body:])
    return Message(header.kind, header.session, header.sequence, header.observation, fields, arrays)


def _read_map(data: memoryview) -> dict[str, Any]:
    try:
        fields = msgpack.unpackb(
            data,
            raw=False,
            use_list=True,
            strict_map_key=True,
            max_str_len=MAX_TEXT,
            max_bin_len=0,
            max_array_len=MAX_KEYS * 4,
            max_map_len=MAX_KEYS,
            max_ext_len=0,
        )
    except (ValueError, msgpack.exceptions.UnpackException, RecursionError, OverflowError) as error:
        raise ProtocolError(f"A message's map is not readable ({type(error).__name__}).") from error
    if not isinstance(fields, dict):
        raise ProtocolError("A message's map is something else.")
    if _count_keys(fields, 1) > MAX_KEYS:
        raise ProtocolError(f"A message's map has more than {MAX_KEYS} keys.")
    return fields


def _count_keys(value: Any, depth: int) -> int:
    """Count the keys in `value`, recursively. Raise a `ProtocolError` for other types and for too deep a nesting."""
    if isinstance(value, (dict, list)):
        if depth > MAX_DEPTH:
            raise ProtocolError(f"A message's map is deeper than {MAX_DEPTH}.")
        if isinstance(value, list):
            return sum(_count_keys(item, depth + 1) for item in value)
        if not all(isinstance(key, str) for key in value):
            raise ProtocolError("A message's map has a key that is not a text.")
        return len(value) + sum(_count_keys(item, depth + 1) for item in value.values())
    if value is not None and not isinstance(value, (str, int, float)):
        raise ProtocolError("A message's map holds what is neither text, number, list nor map.")
    return 0


def _read_arrays(descriptions: Any, buffers: memoryview) -> dict[str, Array]:
    if not isinstance(descriptions, dict):
        raise ProtocolError("A message's `arrays` is not a map of names.")
    arrays: dict[str, Array] = {}
    offset = 0
    for name, description in descriptions.items():
        dtype, shape = _read_description(name, description)
        size = math.prod(shape) * (1 if dtype == JPEG else DTYPES[dtype].itemsize)
        if size > len(buffers) - offset:
            raise ProtocolError(f"'{name}' takes {size} bytes, and {len(buffers) - offset} are left.")
        buffer = buffers[offset : offset + size]
        offset += size
        if dtype == JPEG:
            arrays[name] = Jpeg(bytes(buffer))
        elif dtype == "bool" and np.frombuffer(buffer, np.uint8).max() > 1:
            raise ProtocolError(f"'{name}' is bool, and holds bytes other than 0 and 1.")
        else:
            arrays[name] = np.frombuffer(buffer, DTYPES[dtype]).reshape(shape)
    if offset != len(buffers):
        raise ProtocolError(f"A message has {len(buffers) - offset} bytes that belong to no array.")
    return arrays


def _read_description(name: str, description: Any) -> tuple[str, list[int]]:
    if not (isinstance(description, list) and len(description) == 2 and isinstance(description[1], list)):
        raise ProtocolError(f"'{name}' is described by something else than [dtype, shape].")
    dtype, shape = description
    if not isinstance(dtype, str) or (dtype != JPEG and dtype not in DTYPES):
        raise ProtocolError(
            f"'{name}' is of the dtype {dtype!r:.40}: expected {', '.join(DTYPES)} or {JPEG}."
        )
    limit = 1 if dtype == JPEG else MAX_DIMENSIONS
    if not 1 <= len(shape) <= limit or not all(
        type(side) is int and 1 <= side <= MAX_MESSAGE for side in shape
    ):
        raise ProtocolError(f"'{name}' has the shape {shape!r:.60}: expected 1 to {limit} positive sizes.")
    return dtype, shape

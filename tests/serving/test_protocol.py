"""The wire: what goes out comes back, and nothing else gets in."""

from __future__ import annotations

import io
import struct
from typing import Any

import msgpack
import numpy as np
import pytest
from PIL import Image

from smolact_client.errors import ObservationError, ProtocolError, VersionMismatchError
from smolact_client.images import decode_jpeg, encode_jpeg, jpeg_size
from smolact_client.protocol import (
    DTYPES,
    HEADER,
    MAGIC,
    MAX_MESSAGE,
    PIECE,
    VERSION,
    Jpeg,
    Message,
    MessageKind,
    decode,
    encode,
    frames,
    read_header,
)
from smolact_client.schema import Limits, check_chunk, check_observation
from tests.serving.worlds import CAMERA, SCHEMA, STATE, observation


def raw_message(
    fields: Any, buffers: bytes = b"", kind: int = MessageKind.OBSERVATION, **changes: int
) -> bytes:
    packed = fields if isinstance(fields, bytes) else msgpack.packb(fields)
    values = {"version": VERSION, "maps": len(packed), "length": len(buffers), **changes}
    header = HEADER.pack(MAGIC, values["version"], kind, 1, 2, 3, values["maps"], values["length"])
    return header + packed + buffers


def described(dtype: Any, shape: Any, buffers: bytes = b"") -> bytes:
    return raw_message({"arrays": {"a": [dtype, shape]}}, buffers)


def test_a_message_comes_back_as_it_was() -> None:
    random = np.random.default_rng(0)
    arrays = {
        name: (random.integers(0, 2, (3, 4)) if name == "bool" else random.normal(0, 9, (3, 4))).astype(dtype)
        for name, dtype in DTYPES.items()
    }
    sent = Message(
        MessageKind.OBSERVATION, 2**64 - 1, 7, 6, {"task": "Grüß Gott", "seed": None, "x": [1, 2.5]}, arrays
    )
    found = decode(encode(sent))
    assert (found.kind, found.session, found.sequence, found.observation) == (
        MessageKind.OBSERVATION,
        2**64 - 1,
        7,
        6,
    )
    assert found.fields == sent.fields
    for name, array in arrays.items():
        assert found.arrays[name].dtype == array.dtype  # type: ignore[union-attr]
        np.testing.assert_array_equal(found.arrays[name], array)


def test_arrays_may_lie_anyhow_in_memory() -> None:
    array = np.arange(24, dtype=">i4").reshape(2, 3, 4).transpose(2, 0, 1)[::2]
    np.testing.assert_array_equal(
        decode(encode(Message(MessageKind.CHUNK, arrays={"a": array}))).arrays["a"], array
    )


@pytest.mark.parametrize(
    "array", [np.zeros(2, complex), np.zeros(2, np.float64), np.array(["x"]), np.array([None])]
)
def test_dtypes_that_the_wire_does_not_carry_are_refused_here(array: Any) -> None:
    with pytest.raises(ProtocolError, match="the wire carries"):
        encode(Message(MessageKind.CHUNK, arrays={"a": array}))


def test_a_message_that_is_too_large_is_not_sent() -> None:
    with pytest.raises(ProtocolError, match="Send pictures as JPEG"):
        encode(Message(MessageKind.CHUNK, arrays={"a": np.zeros(MAX_MESSAGE, np.uint8)}))


DEEP = {"a": {"b": {"c": {"d": 1}}}}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "header alone"),
        (b"SMOL" + bytes(35), "header alone"),
        (b"GET / HTTP/1.1\r\n" + bytes(40), "begins with"),
        (raw_message({}, kind=99), "no message of kind 99"),
        (raw_message({}, maps=2), "its header tells"),
        (raw_message({}, b"x"), "belong to no array"),
        (raw_message({}, length=2**32 - 1), "tells of 4294967336 bytes"),
        (raw_message(b"\x93\x01\x02\x03"), "something else"),
        (raw_message(b"\xc1"), "not readable"),
        (raw_message(b"\xdf\xff\xff\xff\xff"), "not readable"),  # a map of 2³² keys, in five bytes
        (raw_message(b"\x81\xa1a\xdd\xff\xff\xff\xff"), "not readable"),  # a list as long
        (raw_message(b"\x81\x01\x01"), "not readable"),  # a key that is a number
        (raw_message(b"\x91" * 5000 + b"\x01"), "not readable|something else"),
        (raw_message({"a": b"bytes"}), "not readable"),
        (raw_message(msgpack.packb({"a": msgpack.ExtType(5, b"code")})), "not readable"),
        (raw_message(msgpack.packb({"a": msgpack.ExtType(5, b"")})), "neither text"),
        (raw_message(msgpack.packb({"a": msgpack.Timestamp(1)})), "not readable"),
        (raw_message(b"\x81\xa1a\xa2\xff\xfe"), "not readable"),  # not UTF-8
        (raw_message(msgpack.packb({}) * 2), "not readable"),
        (raw_message(DEEP | {"e": [[[[1]]]]}), "deeper than 4"),
        (raw_message({str(n): n for n in range(65)}), "not readable"),
        (raw_message({str(n): {str(m): m for m in range(9)} for n in range(8)}), "more than 64 keys"),
        (raw_message({"a": "x" * 17000}), "not readable"),
        (raw_message({"arrays": []}), "not a map"),
        (raw_message({"arrays": {"a": "u8"}}), "something else than"),
        (raw_message({"arrays": {"a": ["u8", 3]}}), "something else than"),
        (described("f64", [1], bytes(8)), "of the dtype 'f64'"),
        (described("O", [1], bytes(8)), "of the dtype 'O'"),
        (described(["u8"], [1], bytes(8)), "of the dtype"),
        (described("u8", [], b"x"), "has the shape"),
        (described("u8", [0]), "has the shape"),
        (described("u8", [-1, -8], bytes(8)), "has the shape"),
        (described("u8", [2.0, 4], bytes(8)), "has the shape"),
        (described("u8", [True], b"x"), "has the shape"),
        (described("u8", [1] * 5, b"x"), "has the shape"),
        (described("f32", [2**24, 2**24, 2**24, 2**24]), "takes"),  # 2⁹⁸ bytes: no product overflows
        (described("f32", [3], bytes(11)), "takes 12 bytes, and 11 are left"),
        (described("f32", [2], bytes(12)), "belong to no array"),
        (described("jpeg", [2, 2], bytes(4)), "has the shape"),
        (described("bool", [3], b"\x00\x01\x02"), "other than 0 and 1"),
    ],
)
def test_what_is_no_message_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(ProtocolError, match=words):
        decode(data)


def test_the_deepest_and_widest_map_that_is_taken() -> None:
    assert decode(raw_message({"a": {"b": {"c": {}}}, "e": [[[1]]]})).fields["e"] == [[[1]]]
    assert len(decode(raw_message({str(n): n for n in range(64)})).fields) == 64


def test_another_version_is_told_apart() -> None:
    with pytest.raises(VersionMismatchError, match="version 2 of the protocol, and this side speaks 1"):
        decode(raw_message({}, version=2))


# Pictures


def jpeg(height: int = 6, width: int = 8, **settings: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), 200, np.uint8)).save(buffer, "JPEG", **settings)
    return buffer.getvalue()


def test_a_picture_goes_through_jpeg() -> None:
    ramp = np.linspace(0, 255, 64)[None, :, None] * np.ones((48, 1, 3))
    found = decode_jpeg(encode_jpeg(ramp.astype(np.uint8)), 48 * 64)
    assert found.shape == (48, 64, 3)
    assert abs(found.astype(float) - ramp).max() < 12


def test_a_bomb_is_refused_before_a_pixel_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    small = jpeg()
    at = small.index(b"\xff\xc0")
    bomb = small[: at + 5] + struct.pack(">HH", 60000, 60000) + small[at + 9 :]
    assert jpeg_size(bomb) == (60000, 60000)
    monkeypatch.setattr("smolact_client.images.JpegImagePlugin", None)  # nothing gets as far as to decode
    with pytest.raises(ProtocolError, match="60000×60000 has more than"):
        decode_jpeg(bomb, 2**22)
    arrays = {CAMERA: Jpeg(bomb), STATE: observation()[STATE]}
    with pytest.raises(ObservationError, match="60000×60000 pixels"):
        check_observation(SCHEMA, Limits(), arrays, "go")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "does not begin"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "does not begin"),
        (b"\xff\xd8" + b"\xff" * 100, "ends before"),
        (jpeg()[:50], "ends before|of another kind"),
        (jpeg(progressive=True), "of another kind"),
        (jpeg()[:-200], "damaged"),
        (
            jpeg().replace(b"\xff\xc0\x00\x11\x08\x00\x06\x00\x08", b"\xff\xc0\x00\x11\x08\x00\x00\x00\x08"),
            "0×8 pixels",
        ),
    ],
)
def test_what_is_no_jpeg_that_we_take_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(ProtocolError, match=words):
        decode_jpeg(data, 2**22)


def test_a_grey_jpeg_is_refused() -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(buffer, "JPEG")
    with pytest.raises(ProtocolError, match="1 colours"):
        decode_jpeg(buffer.getvalue(), 100)


# What an observation must be


@pytest.mark.parametrize(
    ("changes", "task", "words"),
    [
        ({CAMERA: None}, "go", "lacks observation.images.top"),
        ({STATE: np.zeros(4, np.float32)}, "go", r"expected \(3,\) float32"),
        ({STATE: np.zeros(3, np.float16)}, "go", r"expected \(3,\) float32"),
        ({STATE: np.array([0, np.nan, 0], np.float32)}, "go", "not finite"),
        ({STATE: np.array([0, np.inf, 0], np.float32)}, "go", "not finite"),
        ({CAMERA: np.zeros((3, 48, 64), np.uint8)}, "go", "expected a picture"),
        ({CAMERA: np.zeros((48, 64, 3), np.float32)}, "go", "expected a picture"),
        ({"observation.extra": np.zeros(2)}, "go", "does not look at 'observation.extra'"),
        ({CAMERA: np.zeros((3000, 3000, 3), np.uint8)}, "go", "Send a smaller picture"),
        ({}, "x" * 1001, "1001 characters"),
        ({}, "  ", "instruction is empty"),
    ],
)
def test_what_the_policy_can_not_look_at_is_refused(changes: dict[str, Any], task: str, words: str) -> None:
    whole = {name: array for name, array in observation().items() if name in SCHEMA.inputs}
    arrays = {name: array for name, array in {**whole, **changes}.items() if array is not None}
    with pytest.raises(ObservationError, match=words):
        check_observation(SCHEMA, Limits(), arrays, task)
    check_observation(SCHEMA, Limits(), whole, "go")


@pytest.mark.parametrize(
    "chunk",
    [
        None,
        Jpeg(b""),
        np.zeros((5, 3)),
        np.zeros((5, 4), np.float32),
        np.zeros(3, np.float32),
        np.full((5, 3), np.nan, np.float32),
    ],
)
def test_an_answer_that_is_no_finite_chunk_is_refused(chunk: Any) -> None:
    with pytest.raises(ProtocolError, match="not a finite chunk"):
        check_chunk(chunk, SCHEMA)


def test_a_large_message_goes_in_pieces() -> None:
    state = np.arange(3, dtype=np.float32)
    small = Message(MessageKind.OBSERVATION, 1, 2, 2, {"task": "go"}, {"state": state})
    assert frames(small) == encode(small)
    pictures = np.random.default_rng(0).integers(0, 256, (2, 400, 500, 3)).astype(np.uint8)
    arrays = {"front": pictures[0], "wrist": pictures[1, ::-1], "state": state}
    large = Message(MessageKind.OBSERVATION, 1, 2, 2, {"task": "go"}, arrays)
    pieces = frames(large)
    assert isinstance(pieces, list) and max(map(len, pieces)) <= PIECE
    assert read_header(pieces[0]).total == sum(map(len, pieces))
    assert b"".join(pieces) == encode(large)

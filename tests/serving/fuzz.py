"""Messages that are nearly right: a decoder gives a message or a named error, and does nothing else.

    python -m tests.serving.fuzz [CASES=1000000] [SEED=0]

Each case follows from its number. A message is built from values that lie at and beyond every limit, or a whole one is cut,
flipped or spliced; what decodes is looked at further: its pictures, the handshake, what an observation must be.
"""

from __future__ import annotations

import random
import resource
import struct
import sys
import time
from collections import Counter
from typing import Any

import msgpack
import numpy as np

from smolact_client import handshake
from smolact_client.errors import ClientError
from smolact_client.images import encode_jpeg
from smolact_client.protocol import HEADER, MAGIC, VERSION, Jpeg, Message, MessageKind, decode, encode
from smolact_client.schema import Limits, Offer, check_observation, check_offer
from tests.serving.worlds import OFFER, SCHEMA, observation

PIXELS = 2**14
"""Fewer than a server takes, so that a million cases take hours and not days."""
_PICTURE = encode_jpeg(np.random.default_rng(0).integers(0, 255, (24, 32, 3), np.uint8).astype(np.uint8))
_WHOLE = [
    encode(Message(MessageKind.HELLO, 0, 1, fields=handshake.hello("x", OFFER))),
    encode(Message(MessageKind.WELCOME, 5, 1, fields=handshake.welcome(SCHEMA, Limits(), True))),
    encode(
        Message(
            MessageKind.OBSERVATION,
            5,
            2,
            2,
            {"task": "go", "seed": 3, "deadline_ms": 100},
            {
                "observation.images.top": Jpeg(_PICTURE),
                "observation.state": observation()["observation.state"],
            },
        )
    ),
    encode(Message(MessageKind.CHUNK, 5, 2, 2, {"waited_ms": 1.5}, {"action": np.zeros((5, 3), np.float32)})),
    encode(Message(MessageKind.ERROR, 5, 2, 2, {"code": "full", "message": "no"})),
]
_DTYPES = ["u8", "i32", "i64", "f16", "f32", "bool", "jpeg", "f64", "O", "V8", "", "<f4", None, 3, ["u8"], {}]
_SIZES = [
    0,
    1,
    2,
    3,
    7,
    8,
    255,
    2**16,
    2**24,
    2**24 + 1,
    2**31,
    2**32 - 1,
    2**63,
    2**64 - 1,
    -1,
    -(2**63),
    1.5,
    True,
    None,
    "3",
]
_KEYS = [
    "a",
    "arrays",
    "task",
    "offer",
    "schema",
    "limits",
    "cameras",
    "observation.state",
    "",
    "x" * 300,
    "é",
]


def make_case(number: int) -> bytes:
    """The bytes of a case."""
    draw = random.Random(number)
    kind = draw.random()
    if kind < 0.35:
        return _damaged(draw, draw.choice(_WHOLE))
    if kind < 0.4:
        return draw.randbytes(draw.randrange(200))
    packed = _packed(draw)
    buffers = draw.randbytes(draw.choice((0, 0, 1, 8, 12, 64, 500)))
    if kind < 0.55:
        buffers = _damaged(draw, _PICTURE)
        shape = len(buffers) if draw.random() < 0.9 else draw.choice(_SIZES)
        packed = msgpack.packb({"arrays": {"observation.images.top": ["jpeg", [shape]]}})
    header = HEADER.pack(
        MAGIC if draw.random() < 0.98 else draw.randbytes(4),
        VERSION if draw.random() < 0.98 else draw.randrange(2**16),
        draw.randrange(1, 8) if draw.random() < 0.95 else draw.randrange(2**16),
        draw.getrandbits(64),
        draw.getrandbits(64),
        draw.getrandbits(64),
        len(packed) if draw.random() < 0.95 else draw.getrandbits(32),
        len(buffers) if draw.random() < 0.95 else draw.getrandbits(32),
    )
    return header + packed + buffers


def _packed(draw: random.Random) -> bytes:
    if draw.random() < 0.15:  # msgpack whose lengths lie
        head = draw.choice((b"\xdd", b"\xdf", b"\xdb", b"\xc6", b"\xc9", b"\xdc\x00", b"\xde\x00"))
        return (
            b"\x81\xa1a"
            + head
            + struct.pack(">I", draw.choice((0, 1, 2**16, 2**31, 2**32 - 1)))
            + draw.randbytes(9)
        )
    if draw.random() < 0.05:
        return draw.choice((b"\x91", b"\x81\xa1a", b"\xd4\x05")) * draw.randrange(1, 3000) + b"\x01"
    fields: dict[str, Any] = {draw.choice(_KEYS): _value(draw, 0) for _ in range(draw.randrange(4))}
    if draw.random() < 0.8:
        fields["arrays"] = {
            draw.choice(_KEYS): [
                draw.choice(_DTYPES),
                [draw.choice(_SIZES) for _ in range(draw.randrange(6))],
            ]
            for _ in range(draw.randrange(4))
        }
    if draw.random() < 0.02:
        fields |= {str(key): key for key in range(draw.choice((60, 64, 65, 5000)))}
    return bytes(msgpack.packb(fields))


def _value(draw: random.Random, depth: int) -> Any:
    kind = draw.randrange(8 if depth < 6 else 5)
    if kind == 0:
        return draw.choice(_SIZES)
    if kind == 1:
        return draw.choice(_KEYS) * draw.choice((1, 1, 100))
    if kind == 2:
        return draw.choice((float("nan"), float("inf"), -0.0, 1e308))
    if kind == 3:
        return draw.choice((b"bytes", msgpack.ExtType(1, b"x"), msgpack.ExtType(1, b""), None))
    if kind == 4:
        return draw.choice(_DTYPES)
    if kind == 5:
        return {draw.choice(_KEYS): _value(draw, depth + 1) for _ in range(draw.randrange(4))}
    return [_value(draw, depth + 1) for _ in range(draw.choice((0, 1, 2, 3)))]


def _damaged(draw: random.Random, data: bytes) -> bytes:
    kind = draw.randrange(4)
    at = draw.randrange(len(data))
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data[:at] + draw.randbytes(draw.randrange(1, 9)) + data[at:]
    flipped = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 8))):
        flipped[draw.randrange(len(data))] = draw.choice((0, 1, 0x7F, 0x80, 0xFF, draw.randrange(256)))
    return bytes(flipped)


def run_case(number: int) -> str:
    """What came of it: `message`, or the name of the error that told what is wrong with it."""
    try:
        message = decode(make_case(number))
        if message.kind is MessageKind.HELLO:
            check_offer(SCHEMA, handshake.read_hello(message.fields) or Offer())
        elif message.kind is MessageKind.WELCOME:
            handshake.read_welcome(message.fields)
        else:
            task = message.fields.get("task")
            for array in message.arrays.values():
                if isinstance(array, Jpeg):
                    array.decode(PIXELS)
            check_observation(SCHEMA, Limits(), message.arrays, task if isinstance(task, str) else None)
    except ClientError as error:
        return type(error).__name__
    return "message"


FORBIDDEN = (
    "exec",
    "compile",
    "import",
    "open",
    "subprocess.",
    "socket.",
    "os.",
    "shutil.",
    "ctypes.",
    "pickle.",
)


def forbid() -> list[str]:
    """From now on, note every event of the interpreter that decoding has no business with. There is no way back."""
    seen: list[str] = []

    def hook(event: str, arguments: Any) -> None:
        if event.startswith(FORBIDDEN):
            seen.append(f"{event} {arguments!r:.200}")

    sys.addaudithook(hook)
    return seen


def main(cases: int = 1_000_000, seed: int = 0) -> None:
    """Run many, and say what came of them.

    Raises:
        AssertionError: decoding did what it has no business to do, took a second, or ever more memory.
    """
    for number in range(2000):  # what is imported and allocated once
        run_case(seed + number)
    seen = forbid()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcomes: Counter[str] = Counter()
    slowest = 0.0
    for number in range(seed, seed + cases):
        began = time.process_time()
        outcomes[run_case(number)] += 1
        slowest = max(slowest, time.process_time() - began)
        assert slowest < 1, f"case {number} takes {slowest:.1f} s"
        assert not seen, f"case {number}: {seen}"
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < 64, f"{grown:.0f} MB more than at first"
    sys.stdout.write(
        f"{cases} messages: {dict(outcomes.most_common())}, the slowest {1000 * slowest:.1f} ms, {grown:.1f} MB more memory, "
        "no exec, import, subprocess, socket or file\n"
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

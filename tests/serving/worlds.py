"""Policies that answer with what they were asked, observations for them, and a client that does what it likes."""

from __future__ import annotations

import contextlib
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from websockets.sync.client import ClientConnection, connect

from smolact.runtime.policy import Request
from smolact_client import Schema, handshake
from smolact_client.protocol import Message, MessageKind, decode, encode
from smolact_client.schema import Offer

CAMERA, STATE = "observation.images.top", "observation.state"
JOINTS = ("pan", "lift", "grip")
SCHEMA = Schema("echo", {CAMERA: (48, 64)}, {STATE: 3}, 3, 5, 4, names={STATE: JOINTS, "action": JOINTS})
OFFER = Offer({CAMERA: (480, 640)}, {STATE: JOINTS}, JOINTS)


class Echo:
    """Answers with the state; the last row holds the mean of the picture, the task's length, and the seed.

    Args:
        gate: is waited for before each answer, if given.
        warm_up: seconds.
    """

    def __init__(self, gate: threading.Event | None = None, warm_up: float = 0.0) -> None:
        self.schema = SCHEMA
        self.gate, self.seconds = gate, warm_up
        self.asked: list[list[float]] = []
        self.entered = threading.Event()

    def warm_up(self, max_batch: int) -> None:
        time.sleep(self.seconds)

    def predict(self, questions: Sequence[Request]) -> list[NDArray[np.float32]]:
        self.asked.append([float(one.observation[STATE][0]) for one in questions])
        self.entered.set()
        if self.gate is not None:
            assert self.gate.wait(20)
        return [self.chunk(one) for one in questions]

    def chunk(self, one: Request) -> NDArray[np.float32]:
        chunk = np.tile(one.observation[STATE], (5, 1)).astype(np.float32)
        chunk[-1] = one.observation[CAMERA].mean(), len(one.task or ""), one.seed or 0
        return chunk


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate of this machine that signs itself, and its key."""
    certificate, key = folder / "cert.pem", folder / "key.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=localhost",
        "-addext",
    ]
    files = ("-keyout", key, "-out", certificate)
    command.append("subjectAltName=DNS:localhost,IP:127.0.0.1")
    subprocess.run([*command, *files], check=True, capture_output=True)
    return certificate, key


def observation(value: float = 0.0, picture: int = 0) -> dict[str, NDArray[Any]]:
    return {
        CAMERA: np.full((48, 64, 3), picture, np.uint8),
        STATE: np.full(3, value, np.float32),
        "observation.extra": np.zeros(2),
    }


class Raw:
    """A client that sends what it is told to, after a proper handshake."""

    def __init__(self, socket: ClientConnection, wait: bool) -> None:
        self.socket = socket
        socket.send(encode(Message(MessageKind.HELLO, sequence=1, fields=handshake.hello("raw", None))))
        welcome = self.receive()
        self.session = welcome.session
        self.sequence = 1
        if wait and not welcome.fields["ready"]:
            assert self.receive().kind is MessageKind.READY

    def receive(self, timeout: float = 10) -> Message:
        data = self.socket.recv(timeout)
        assert isinstance(data, bytes)
        return decode(data)

    def ask(self, value: float, **fields: Any) -> int:
        self.sequence += 1
        arrays = {name: array for name, array in observation(value).items() if name in SCHEMA.inputs}
        more = {"task": "go", **fields}
        self.send(Message(MessageKind.OBSERVATION, self.session, self.sequence, self.sequence, more, arrays))
        return self.sequence

    def reset(self) -> None:
        self.sequence += 1
        self.send(Message(MessageKind.RESET, self.session, self.sequence))

    def send(self, message: Message) -> None:
        self.socket.send(encode(message))


@contextlib.contextmanager
def raw(url: str, wait: bool = True, **settings: Any) -> Iterator[Raw]:
    with connect(url, compression=None, proxy=None, max_size=None, close_timeout=1, **settings) as socket:
        yield Raw(socket, wait)


def until(condition: Any, timeout: float = 20) -> None:
    """Wait for something that another thread does."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)

"""Small frames are read at the rate of a budget: nothing of them is lost, nobody waits for them, and who insists is cut off."""

from __future__ import annotations

import base64
import contextlib
import random
import socket
import struct
import threading
import time
from collections import Counter
from typing import Any
from urllib.parse import urlsplit

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode
from websockets.sync.client import ClientConnection

from smolact.serving import budget
from smolact.serving.background import serving
from smolact.serving.budget import SMALL, Frames
from smolact_client import RemotePolicy
from smolact_client.protocol import Message, MessageKind, encode
from tests.serving.test_abuse import get
from tests.serving.test_sessions import metric
from tests.serving.worlds import SCHEMA, Echo, Raw, observation, raw, until


def frame(data: bytes, opcode: Opcode = Opcode.CONT, fin: bool = False) -> bytes:
    return Frame(opcode, data, fin).serialize(mask=True)


def test_frames_are_counted_wherever_the_bytes_are_cut() -> None:
    draw = random.Random(0)
    sizes = [0, 1, 5, 125, 126, 127, 65535, 65536, SMALL - 1, SMALL, SMALL + 1, 200_000]
    for _ in range(50):
        chosen = [draw.choice(sizes) for _ in range(30)]
        stream = b"".join(frame(bytes(size)) for size in chosen)
        frames, found, handed = Frames(), 0, b""
        at = 0
        while at < len(stream):
            piece = stream[at : at + draw.choice([1, 2, 3, 7, 100, 70_000])]
            most = draw.choice([0, 1, 2, 64])
            took, count = frames.measure(piece, most)
            assert count <= most + 1  # one whose first bytes came before
            assert took == len(piece) or count >= most
            handed += piece[:took]
            found += count
            at += took
        assert handed == stream and found == sum(size < SMALL for size in chosen)


def question(client: Raw, value: float) -> bytes:
    client.sequence += 1
    arrays: Any = {name: array for name, array in observation(value).items() if name in SCHEMA.inputs}
    number = client.sequence
    return encode(Message(MessageKind.OBSERVATION, client.session, number, number, {"task": "go"}, arrays))


def test_a_message_in_thousands_of_pieces_arrives_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "RATE", 10_000.0)
    with serving(Echo()) as url, raw(url) as client:
        data = question(client, 3.0)
        pieces = [data[at : at + 3] for at in range(40, len(data), 3)]
        bare = client.socket.socket
        bare.sendall(frame(data[:40], Opcode.BINARY) + b"".join(map(frame, pieces)) + frame(b"", fin=True))
        answer = client.receive(60)
        assert answer.kind is MessageKind.CHUNK and answer.arrays["action"][0, 0] == 3  # type: ignore[call-overload, index]
        assert len(pieces) > 2 * budget.BURST


@pytest.fixture
def pongs(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """How many came, by connection."""
    real, found = ClientConnection.process_event, Counter[int]()

    def progress_bar(self: ClientConnection, event: Any) -> None:
        found[id(self)] += getattr(event, "opcode", None) is Opcode.PONG
        real(self, event)

    monkeypatch.setattr(ClientConnection, "process_event", progress_bar)
    return found


def test_pings_are_answered_at_the_rate_of_the_budget(
    monkeypatch: pytest.MonkeyPatch, pongs: Counter[int]
) -> None:
    monkeypatch.setattr(budget, "RATE", 100.0)
    monkeypatch.setattr(budget, "BURST", 100.0)
    monkeypatch.setattr(budget, "PATIENCE_S", 600.0)
    with serving(Echo()) as url, RemotePolicy(url) as other, raw(url) as client:
        began = time.monotonic()
        bare = client.socket.socket
        bare.sendall(b"".join(frame(struct.pack("<I", number), Opcode.PING, True) for number in range(5000)))
        for number in range(10):
            assert other.predict_action_chunk(observation(number), "go")[0, 0] == number
        time.sleep(0.5)
        answered = pongs[id(client.socket)]
        allowed = 100 + 100 * (time.monotonic() - began)
        assert 0 < answered <= allowed + budget.AT_A_TIME


@pytest.mark.parametrize(
    "tiny",
    [frame(b"x"), frame(b"", Opcode.PING, True), frame(b"x") * 8 + frame(b"", Opcode.PING, True)],
    ids=["fragments", "pings", "both"],
)
def test_who_stays_over_the_budget_is_cut_off_and_delays_nobody(
    tiny: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "PATIENCE_S", 0.5)
    with serving(Echo()) as url, RemotePolicy(url, timeout=20) as other, raw(url) as client:
        data = question(client, 1.0)
        head = data[:36] + struct.pack("<I", 2**23)
        bare = client.socket.socket
        bare.sendall(frame(head, Opcode.BINARY))
        gone = threading.Event()

        def flood() -> None:
            try:
                while True:
                    bare.sendall(tiny * 1000)
            except OSError:
                gone.set()

        thread = threading.Thread(target=flood)
        thread.start()
        for number in range(20):
            assert other.predict_action_chunk(observation(number), "go")[0, 0] == number
        assert gone.wait(20)
        thread.join()
        with pytest.raises(ConnectionClosed):
            client.receive()
        until(lambda: metric(url, 'rejected_total{reason="too_many_frames"}') == 1)
        assert other.sessions == 1


def test_frames_behind_a_request_are_counted_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one packet with the request, before it was answered."""
    monkeypatch.setattr(budget, "PATIENCE_S", 0.2)
    with serving(Echo()) as url:
        key = base64.b64encode(bytes(16)).decode()
        request = (
            f"GET / HTTP/1.1\r\nHost: here\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
        ).encode()
        pings = frame(b"", Opcode.PING, True) * 20_000
        with socket.create_connection((urlsplit(url).hostname, urlsplit(url).port)) as bare:  # type: ignore[arg-type]
            for byte in request[:-1]:
                bare.sendall(bytes([byte]))
            bare.sendall(request[-1:] + pings)
            bare.settimeout(20)
            answer = b""
            with contextlib.suppress(ConnectionResetError):
                while more := bare.recv(2**16):
                    answer += more
        assert answer.count(b"\x8a\x00") < 2 * budget.BURST  # pongs
        until(lambda: metric(url, 'rejected_total{reason="too_many_frames"}') == 1)


def test_a_quick_robot_is_not_over_the_budget() -> None:
    with serving(Echo()) as url, RemotePolicy(url) as policy:
        for number in range(400):
            policy.predict_action_chunk(observation(number), "go")
        assert policy.sessions == 1
        assert "too_many_frames" not in get(url, "/metrics")[1]

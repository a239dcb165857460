"""Who says nothing takes no place from who does, and nobody is waited for when the server ends."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from websockets.sync.client import connect

from smolact.serving import sockets
from smolact.serving.auth import Auth, read_certificate
from smolact.serving.background import serving
from smolact.serving.sockets import PendingConnections
from smolact_client import RemotePolicy, ServerFullError, handshake
from smolact_client.protocol import Message, MessageKind, decode, encode
from tests.serving.test_abuse import SECRET, TOKEN, get
from tests.serving.test_sessions import metric
from tests.serving.worlds import Echo, make_certificate, observation, raw, until

LONG = 600.0
"""Seconds for a handshake: who waits for one in these tests waits for ever."""


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smolact.serving.server.HELLO_S", LONG)


@contextlib.contextmanager
def callers(url: str, count: int, says: bytes = b"") -> Iterator[list[socket.socket]]:
    """Connections that say no more than this."""
    with contextlib.ExitStack() as stack:
        address = (urlsplit(url).hostname, urlsplit(url).port)
        found = []
        for _ in range(count):
            one = stack.enter_context(socket.create_connection(address))  # type: ignore[arg-type]
            if says:
                one.sendall(says)
            found.append(one)
        yield found


@pytest.mark.parametrize(
    "says", [b"", b"GET / HTTP/1.1\r\nHost: here\r\n", b"\x16\x03\x01"], ids=["nothing", "half", "noise"]
)
def test_a_robot_gets_in_however_many_say_nothing(says: bytes) -> None:
    with serving(Echo(), SECRET) as url, RemotePolicy(url, token=TOKEN) as before, callers(url, 200, says):
        with RemotePolicy(url, token=TOKEN, connect_timeout=LONG) as policy:
            assert policy.predict_action_chunk(observation(1), "go")[0, 0] == 1
        assert before.predict_action_chunk(observation(2), "go")[0, 0] == 2
        assert before.sessions == 1  # who has said who it is keeps its place
        _, text = get(url, "/metrics", Authorization=f"Bearer {TOKEN}")
        assert 'smolact_rejected_total{reason="too_many_sockets"}' in text


def test_who_opens_a_websocket_and_says_no_hello_takes_no_place() -> None:
    with serving(Echo(), max_clients=2) as url, contextlib.ExitStack() as stack:
        for _ in range(10):
            stack.enter_context(connect(url, proxy=None))
        first = stack.enter_context(RemotePolicy(url))
        with RemotePolicy(url), pytest.raises(ServerFullError):
            RemotePolicy(url)
        assert first.predict_action_chunk(observation(1), "go")[0, 0] == 1


def test_two_that_say_hello_at_once_do_not_share_the_last_place() -> None:
    with serving(Echo(), max_clients=1) as url, connect(url, proxy=None) as late:
        with raw(url):
            late.send(encode(Message(MessageKind.HELLO, sequence=1, fields=handshake.hello("late", None))))
            told = late.recv(10)
            assert isinstance(told, bytes) and decode(told).fields["code"] == "full"
        until(lambda: metric(url, "sessions") == 0)


def test_a_crowd_of_one_address_makes_room_for_itself_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "PER_ADDRESS", 3)
    turned_out: list[int] = []
    hall = PendingConnections(5, lambda: turned_out.append(1))
    with contextlib.ExitStack() as stack:

        def enter(host: str, port: int) -> socket.socket:
            here, there = (stack.enter_context(one) for one in socket.socketpair())
            there.settimeout(5)
            hall.enter(here, (host, port))
            return there

        robot = enter("10.0.0.1", 1)
        crowd = [enter("10.0.0.2", port) for port in range(4)]
        assert crowd[0].recv(1) == b"" and len(hall) == 4  # the oldest of the crowd
        neighbour = [enter(f"2001:db8::{port}", port) for port in range(2)]
        assert crowd[1].recv(1) == b"" and len(hall) == 5  # full: the largest crowd gives way, not the robot
        enter("2001:db8:0:1::1", 1)
        assert crowd[2].recv(1) == b"" or neighbour[0].recv(1) == b""
        hall.leave(("10.0.0.1", 1))
        for port in range(5):
            enter("10.0.0.2", 10 + port)
        robot.setblocking(False)
        with pytest.raises(BlockingIOError):  # nobody hung up on it
            robot.recv(1)
        hall.clear()
        assert len(hall) == 0 and len(turned_out) >= 5


def test_who_has_hung_up_takes_no_place() -> None:
    turned_out: list[int] = []
    hall = PendingConnections(1, lambda: turned_out.append(1))
    for port in range(3):
        here, there = socket.socketpair()
        with here, there:
            hall.enter(here, ("10.0.0.1", port))
    assert len(hall) == 1 and not turned_out


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_certificate(tmp_path_factory.mktemp("tls"))


def test_behind_tls_a_robot_gets_in_too(certificate: tuple[Path, Path]) -> None:
    access = Auth(port=0, token=TOKEN, tls=read_certificate(*certificate))
    settings: dict[str, Any] = {"token": TOKEN, "ca_file": certificate[0], "connect_timeout": LONG}
    with serving(Echo(), access) as url, callers(url, 200), RemotePolicy(url, **settings) as policy:
        assert policy.predict_action_chunk(observation(1), "go")[0, 0] == 1


@pytest.mark.parametrize("says", [b"", b"GET / HTTP/1.1\r\nHost: here\r\n"], ids=["nothing", "half"])
@pytest.mark.parametrize("tls", [False, True])
def test_the_end_waits_for_no_handshake(says: bytes, tls: bool, certificate: tuple[Path, Path]) -> None:
    access = Auth(port=0, tls=read_certificate(*certificate) if tls else None)
    with contextlib.ExitStack() as stack:
        with serving(Echo(), access) as url:
            stack.enter_context(callers(url, 5, says))
            if not tls:
                stack.enter_context(connect(url, proxy=None))  # says no hello
                until(lambda: get(url, "/livez")[0] == 200)
            ends = time.monotonic()
        assert time.monotonic() - ends < LONG / 20  # not the time that a handshake may take


def test_a_name_of_two_addresses_is_one_port_at_both() -> None:
    with serving(Echo(), Auth("localhost", port=0)) as url:
        port = urlsplit(url).port
        found = {one[4][0] for one in socket.getaddrinfo("localhost", port, type=socket.SOCK_STREAM)}
        for host in found:
            try:
                socket.create_connection((host, port), 5).close()
            except OSError:  # a name that this machine has no address for
                assert ":" in host
        with RemotePolicy(f"ws://localhost:{port}") as policy:
            assert policy.predict_action_chunk(observation(1), "go")[0, 0] == 1

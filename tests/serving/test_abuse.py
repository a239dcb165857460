"""Who has no business here gets nothing, costs little, and harms nobody else."""

from __future__ import annotations

import http.client
import logging
import socket
import ssl
import threading
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from smolact.errors import ConfigError, NotFoundError, ServerError
from smolact.serving.auth import Auth, read_certificate, read_token
from smolact.serving.background import serving
from smolact_client import (
    ConnectError,
    ProtocolError,
    RemotePolicy,
    ServerFullError,
    VersionMismatchError,
    WrongTokenError,
)
from smolact_client.protocol import Message, MessageKind, decode, encode
from tests.serving.test_sessions import metric
from tests.serving.worlds import Echo, make_certificate, observation, raw, until

TOKEN = "0123456789abcdef0123456789abcdef"
SECRET = Auth(port=0, token=TOKEN)


def get(url: str, path: str, **headers: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)
    connection.request("GET", path, headers=headers)
    reply = connection.getresponse()
    found = reply.status, reply.read().decode()
    connection.close()
    return found


def test_only_the_token_opens() -> None:
    with serving(Echo(), SECRET) as url:
        with RemotePolicy(url, token=TOKEN) as policy:
            assert policy.predict_action_chunk(observation(1), "go")[0, 0] == 1
        for token in (None, "", TOKEN[:-1], TOKEN + "0", TOKEN.upper()):
            with pytest.raises(WrongTokenError, match="does not take this token"):
                RemotePolicy(url, token=token)
        assert get(url, "/livez") == (200, "alive\n")
        assert get(url, "/metrics")[0] == 401
        status, text = get(url, "/metrics", Authorization=f"Bearer {TOKEN}")
        assert status == 200 and 'smolact_rejected_total{reason="wrong_token"} 6' in text
        assert TOKEN not in text


def test_no_token_is_ever_shown(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "smolact")
    with serving(Echo(), SECRET) as url:
        with pytest.raises(WrongTokenError) as found:
            RemotePolicy(url, token=TOKEN[::-1])
        with RemotePolicy(url, token=TOKEN) as policy:
            policy.predict_action_chunk(observation(1), "a task that is nobody's business")
            assert TOKEN not in repr(policy) + repr(SECRET) + repr(policy._address)
    assert TOKEN[::-1] not in str(found.value)
    assert "event=session_began" in caplog.text and "event=wrong_token" in caplog.text
    assert TOKEN not in caplog.text and TOKEN[::-1] not in caplog.text
    assert "business" not in caplog.text


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"token": ""}, "empty"),
        ({"token": "short"}, "5 characters"),
        ({"token": "ü" * 20}, "header can't carry"),
        ({"token": "a" * 20 + "\n"}, "header can't carry"),
        ({"host": "0.0.0.0"}, "neither a token .* nor TLS"),
        ({"host": "robot.local"}, "neither a token .* nor TLS"),
        ({"host": "::"}, "neither a token .* nor TLS"),
        ({"host": "10.0.0.1", "token": TOKEN}, "it lacks TLS"),
        ({"host": ""}, "--host is empty"),
        ({"port": 65536}, "--port=65536"),
        ({"port": -1}, "--port=-1"),
    ],
)
def test_a_server_that_lets_everybody_in_does_not_start(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Auth(**settings)


def test_insecure_must_be_said_and_this_machine_is_trusted() -> None:
    assert not Auth("0.0.0.0", insecure=True).is_local
    assert all(Auth(host).is_local for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost"))


def test_a_token_comes_from_a_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "token"
    with pytest.raises(NotFoundError, match="openssl rand"):
        read_token(file)
    file.write_text(f" {TOKEN}\n")
    file.chmod(0o600)
    assert read_token(file) == TOKEN and not caplog.records
    file.chmod(0o644)
    assert read_token(file) == TOKEN and "chmod 600" in caplog.text
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="holds no text"):
        read_token(file)


def test_tls_is_checked_by_both(tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)
    with serving(Echo(), Auth(port=0, token=TOKEN, tls=read_certificate(certificate, key))) as url:
        assert url.startswith("wss://")
        with RemotePolicy(url, token=TOKEN, ca_file=certificate) as policy:
            assert policy.predict_action_chunk(observation(1), "go")[0, 0] == 1
        with pytest.raises(ConnectError, match="could not be trusted"):
            RemotePolicy(url, token=TOKEN)
        with pytest.raises(ConnectError):
            RemotePolicy(url.replace("wss:", "ws:"), token=TOKEN, connect_timeout=2)
    with pytest.raises(ConfigError, match="not a certificate and its key"):
        read_certificate(key, certificate)
    with pytest.raises(NotFoundError):
        read_certificate(tmp_path / "none.pem", None)
    assert isinstance(read_certificate(certificate, key), ssl.SSLContext)


def test_a_page_in_a_browser_is_not_let_in() -> None:
    page = {"origin": "http://evil.example", "proxy": None}
    with serving(Echo()) as url, pytest.raises(InvalidStatus, match="403"), connect(url, **page):  # type: ignore[arg-type]
        pass


def test_there_is_room_for_so_many_and_no_more() -> None:
    with serving(Echo(), max_clients=2) as url:
        with RemotePolicy(url), RemotePolicy(url), pytest.raises(ServerFullError):
            RemotePolicy(url)
        until(lambda: metric(url, "sessions") == 0)
        RemotePolicy(url).close()


def test_a_port_in_use_is_told() -> None:
    with serving(Echo()) as url:
        there = Auth(port=int(url.rpartition(":")[2]))
        with (
            pytest.raises(ServerError, match="Choose another with --host and --port"),
            serving(Echo(), there),
        ):
            pass


def test_other_paths_and_the_state_of_health() -> None:
    with serving(Echo(), max_clients=3) as url:
        assert get(url, "/etc/passwd")[0] == 404
        until(lambda: get(url, "/readyz") == (200, "ready\n"))
        assert "smolact_ready 1" in get(url, "/metrics")[1]
    with serving(Echo(warm_up=1)) as url:
        assert get(url, "/readyz") == (503, "warming up\n")


# Messages that are none


def said_goodbye(client: Any) -> str:
    """What the server said last, and that it hung up."""
    told = client.receive()
    with pytest.raises(ConnectionClosed):
        client.receive()
    assert told.kind is MessageKind.ERROR
    return str(told.fields["code"])


def bad_messages(session: int) -> list[bytes | str]:
    whole = encode(Message(MessageKind.OBSERVATION, session, 2, 2, {"task": "go"}, {}))
    return [
        b"",
        b"\x00" * 100,
        "text",
        whole[:-1],
        whole + b"x",
        encode(Message(MessageKind.OBSERVATION, session + 1, 2, 2)),  # somebody else's session
        encode(Message(MessageKind.OBSERVATION, session, 1, 1)),  # came twice
        encode(Message(MessageKind.OBSERVATION, session, 2, 3)),  # not its own observation
        encode(Message(MessageKind.WELCOME, session, 2)),
        encode(Message(MessageKind.HELLO, session, 2)),
        encode(Message(MessageKind.CHUNK, session, 2)),
    ]


@pytest.mark.parametrize("number", range(len(bad_messages(1))))
def test_who_sends_what_is_no_message_is_thrown_out(number: int) -> None:
    with serving(Echo()) as url, RemotePolicy(url) as other:
        with raw(url) as client:
            client.socket.send(bad_messages(client.session)[number])
            assert said_goodbye(client) == "protocol"
        assert other.predict_action_chunk(observation(1), "go")[0, 0] == 1
        assert metric(url, 'rejected_total{reason="protocol"}') == 1


def test_the_first_message_must_be_a_hello_of_this_version(monkeypatch: pytest.MonkeyPatch) -> None:
    hello = encode(Message(MessageKind.HELLO, sequence=1))
    newer = hello[:4] + b"\x02\x00" + hello[6:]
    with serving(Echo()) as url:
        for data, code in (
            (encode(Message(MessageKind.RESET)), "protocol"),
            (encode(Message(MessageKind.HELLO, fields={"offer": 3})), "protocol"),
            (encode(Message(MessageKind.HELLO, fields={"offer": {"cameras": {"a": [1]}}})), "protocol"),
            (newer, "version_mismatch"),
        ):
            with connect(url, proxy=None) as client:
                client.send(data)
                assert decode(client.recv(10)).fields["code"] == code  # type: ignore[arg-type]
        monkeypatch.setattr("smolact_client.connection.encode", lambda message: newer)
        with pytest.raises(VersionMismatchError, match="this side speaks 1"):
            RemotePolicy(url)


def test_a_silent_client_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smolact.serving.server.HELLO_S", 0.2)
    with serving(Echo()) as url, connect(url, proxy=None) as client, pytest.raises(ConnectionClosed):
        client.recv(10)


def test_somebody_who_is_no_policy_server_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(Echo()) as url:
        with pytest.raises(ConnectError, match="HTTP 404"):
            RemotePolicy(url + "/elsewhere")
        monkeypatch.setattr("smolact.serving.sessions.encode", lambda message: b"hello")
        with pytest.raises(ProtocolError, match="header alone"):
            RemotePolicy(url)


def test_an_oversize_message_is_refused_before_it_is_read() -> None:
    with serving(Echo()) as url, RemotePolicy(url) as other:
        with raw(url) as client:
            with pytest.raises(ConnectionClosed) as found:
                for _ in range(4):
                    client.socket.send(bytes(20 * 2**20))
                client.receive()
            assert found.value.rcvd is None or found.value.rcvd.code == 1009
        assert other.predict_action_chunk(observation(1), "go")[0, 0] == 1
        assert metric(url, "received_bytes_total") < 2**20


def test_who_hangs_up_in_the_middle_of_a_message_harms_nobody() -> None:
    with serving(Echo()) as url, RemotePolicy(url) as other:
        whole = encode(Message(MessageKind.HELLO, sequence=1))
        for number in range(60):
            with connect(url, proxy=None) as client:
                bare = client.socket
                header = bytes([0x82, 0x80 | 126]) + (1000).to_bytes(2, "big") + bytes(4)
                bare.sendall((header + whole)[: 1 + number])
                bare.shutdown(socket.SHUT_RDWR)
        assert other.predict_action_chunk(observation(1), "go")[0, 0] == 1
        until(lambda: metric(url, "sessions") == 1)


def test_who_only_complains_must_read_what_it_is_told() -> None:
    """Bad observations by the thousand, and none of the complaints about them is read."""
    with serving(Echo()) as url, RemotePolicy(url, timeout=20) as other, raw(url, max_queue=1) as slow:
        with pytest.raises(ConnectionClosed):
            for _ in range(200_000):
                slow.ask(1, task="x" * 1001)
        assert other.predict_action_chunk(observation(7), "go")[0, 0] == 7


def test_who_does_not_read_is_cut_off_and_delays_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smolact.serving.sessions.SEND_S", 0.3)

    class Long(Echo):
        """Answers by the megabyte."""

        def chunk(self, one: Any) -> Any:
            return np.zeros((100_000, 3), np.float32) if one.task == "all" else super().chunk(one)

    with serving(Long()) as url, RemotePolicy(url, timeout=20) as other, raw(url, max_queue=1) as slow:
        gone = threading.Event()

        def ask() -> None:
            try:
                while True:
                    slow.ask(1, task="all")
            except ConnectionClosed:
                gone.set()

        thread = threading.Thread(target=ask)
        thread.start()
        for number in range(20):
            assert other.predict_action_chunk(observation(number), "go")[0, 0] == number
        assert gone.wait(20)
        thread.join()
        assert other.predict_action_chunk(observation(7), "go")[0, 0] == 7
        assert other.sessions == 1

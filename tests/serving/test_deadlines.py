"""Deadlines hold, late answers are dropped, servers come and go, and a cold one loses nobody."""

from __future__ import annotations

import ast
import contextlib
import socket
import socketserver
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import smolact.recording
import smolact.robots
import smolact.serving
import smolact_client
from smolact.serving.auth import Auth
from smolact.serving.background import serving
from smolact_client import (
    ConnectError,
    NotReadyError,
    RemotePolicy,
    SchemaMismatchError,
    ServerLostError,
    TimedOutError,
    connection,
)
from smolact_client.protocol import MessageKind
from tests.serving.test_sessions import metric
from tests.serving.worlds import CAMERA, STATE, Echo, observation, raw, until


def test_a_late_answer_is_dropped() -> None:
    gate = threading.Event()
    echo = Echo(gate)
    with serving(echo) as url, RemotePolicy(url) as policy:
        for value in (1, 2):
            with pytest.raises(TimedOutError, match="No answer within"):
                policy.predict_action_chunk(observation(value), "go", timeout=0.05)
        gate.set()
        assert policy.predict_action_chunk(observation(3), "go", timeout=20)[0, 0] == 3
        assert policy.late >= 1
        assert policy.sessions == 1


def test_a_question_whose_time_is_over_is_not_asked() -> None:
    gate = threading.Event()
    echo = Echo(gate)
    with serving(echo) as url, raw(url) as first, raw(url) as second:
        first.ask(1)
        until(echo.entered.is_set)
        late = second.ask(2, deadline_ms=1)
        until(lambda: metric(url, "waiting") == 1)
        time.sleep(0.01)
        gate.set()
        answer = second.receive()
        assert (answer.observation, answer.fields["code"]) == (late, "timed_out")
    assert echo.asked == [[1]]


def test_a_server_that_begins_anew_is_found_again() -> None:
    with serving(Echo()) as url:
        policy = RemotePolicy(url, timeout=30)
        assert policy.predict_action_chunk(observation(1), "go")[0, 0] == 1
    with policy:
        until(lambda: policy._link is None)
        with pytest.raises(ServerLostError, match="no new one yet"):
            policy.predict_action_chunk(observation(2), "go", timeout=0.05)
        with serving(Echo(), Auth(port=int(url.rpartition(":")[2]))):
            assert policy.predict_action_chunk(observation(3), "go")[0, 0] == 3
            assert policy.sessions == 2


def test_a_question_goes_to_the_next_session_if_there_is_time() -> None:
    gate = threading.Event()
    echo = Echo(gate)
    found: list[float] = []
    with serving(echo) as url:
        policy = RemotePolicy(url, timeout=30)
        asking = threading.Thread(
            target=lambda: found.append(float(policy.predict_action_chunk(observation(5), "go")[0, 0]))
        )
        asking.start()
        until(echo.entered.is_set)
        policy._loop.call_soon_threadsafe(policy._link._socket.transport.abort)  # type: ignore[union-attr]
        until(lambda: policy.sessions == 2)
        gate.set()
        asking.join(30)
        assert found == [5]
        policy.close()


def test_another_policy_at_the_same_address_is_not_taken_for_the_first() -> None:
    with serving(Echo()) as url:
        policy = RemotePolicy(url, timeout=30)
    other = Echo()
    other.schema = smolact_client.Schema("other", {}, {}, 7, 5, 4)
    there = Auth(port=int(url.rpartition(":")[2]))
    with policy, serving(other, there), pytest.raises(SchemaMismatchError, match="serves another policy"):
        policy.predict_action_chunk(observation(), "go")


def test_nobody_there_is_told_at_once() -> None:
    with serving(Echo()) as url:
        pass
    with pytest.raises(ConnectError, match="Nobody answers"):
        RemotePolicy(url)
    for address in ("http://localhost:1", "localhost:1", "ws://", "ws://me:secret@localhost:1"):
        with pytest.raises(ConnectError) as found:
            RemotePolicy(address)
        assert "secret" not in str(found.value).replace(address, "") or "token" in str(found.value)


def test_a_cold_start_loses_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Warming up takes many times as long as a connection is tried for, with questions coming in."""
    monkeypatch.setattr(connection, "PING_S", 0.2)
    monkeypatch.setattr("smolact.serving.server.PING_S", 0.2)
    cold = Echo(warm_up=2.0)
    with serving(cold) as url:
        with raw(url, wait=False) as eager:
            eager.ask(1)
            assert eager.receive().fields["code"] == "not_ready"
            assert metric(url, "ready") == 0
            with RemotePolicy(url, timeout=20) as policy:  # waits for it
                assert metric(url, "ready") == 1
                assert policy.predict_action_chunk(observation(2), "go")[0, 0] == 2
                assert policy.sessions == 1
            assert eager.receive().kind is MessageKind.READY
            eager.ask(3)
            assert eager.receive().kind is MessageKind.CHUNK
        assert metric(url, "sessions_total") == 2


def test_who_does_not_want_to_wait_for_a_cold_server_need_not() -> None:
    with serving(Echo(warm_up=1.0)) as url, pytest.raises(NotReadyError, match="still warming up"):
        RemotePolicy(url, connect_timeout=0.2, ready_timeout=0.1)


class Road(socketserver.ThreadingTCPServer):
    """Carries bytes to a server and back, while it is open."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, url: str) -> None:
        self.end = ("127.0.0.1", int(url.rpartition(":")[2]))
        self.open = threading.Event()
        self.open.set()
        super().__init__(("127.0.0.1", 0), Travel)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**16)  # or it would swallow all of it


class Travel(socketserver.BaseRequestHandler):
    server: Road

    def handle(self) -> None:
        with socket.create_connection(self.server.end) as far:
            back = threading.Thread(target=self.carry, args=(far, self.request))
            back.start()
            self.carry(self.request, far)
            back.join()

    def carry(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(2**16):
                self.server.open.wait()
                other.sendall(data)
        for end in (one, other):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def test_a_stalled_network_does_not_move_the_deadline() -> None:
    """What is sent piles up in the sockets until nothing more goes in."""
    big = {**observation(), CAMERA: np.zeros((2000, 2000, 3), np.uint8)}
    with serving(Echo()) as url, Road(url) as road:
        threading.Thread(target=road.serve_forever).start()
        with RemotePolicy(f"ws://127.0.0.1:{road.server_address[1]}", timeout=20) as policy:
            assert policy.predict_action_chunk({**big, STATE: np.ones(3)}, "go")[0, 0] == 1
            road.open.clear()
            began = time.monotonic()
            with pytest.raises(TimedOutError):
                policy.predict_action_chunk(big, "go", timeout=0.2)
            assert time.monotonic() - began < 10  # and not the minutes that TCP would take
            road.open.set()
            assert policy.predict_action_chunk({**big, STATE: np.full(3, 2)}, "go")[0, 0] == 2
            assert policy.sessions == 2  # half of a message was stuck in the first
        road.shutdown()


def test_no_clock_that_can_jump_is_read() -> None:
    """Only `time.monotonic` and the like: setting a machine's clock changes nothing, here or in the robot's loop."""
    for package in (smolact.serving, smolact.recording, smolact.robots, smolact_client):
        for path in Path(str(package.__file__)).parent.glob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                    name = f"{node.value.id}.{node.attr}"
                    assert name not in ("time.time", "time.localtime", "datetime.now"), (
                        f"{path}:{node.lineno}"
                    )

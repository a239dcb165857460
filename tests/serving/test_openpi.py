"""openpi's clients and servers, as their wire is written down: each side of ours against a stand-in of the other."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from websockets.sync.client import connect
from websockets.sync.server import ServerConnection, serve

from smolact.cli.servers import is_server, load_from_server
from smolact.errors import ServerError
from smolact.runtime.policy import Request
from smolact.serving.auth import Auth
from smolact.serving.background import serving
from smolact.serving.openpi import OpenpiServer, read_observation
from smolact_client import (
    ClientError,
    ConnectError,
    MissingFeatureError,
    ObservationError,
    PolicyFailedError,
    ProtocolError,
    SchemaMismatchError,
    ServerLostError,
    TimedOutError,
    WrongTokenError,
)
from smolact_client.openpi import OpenpiPolicy, pack, read_openpi_schema, unpack
from smolact_client.policy import ChunkPolicy
from tests.serving.worlds import CAMERA, SCHEMA, STATE, Echo, observation, until

TOKEN = "0123456789abcdef"


def theirs(value: Any) -> bytes:
    """A message as openpi's packer writes it."""

    def default(found: Any) -> Any:
        if isinstance(found, np.ndarray):
            shape, data = found.shape, found.tobytes()
            return {b"__ndarray__": True, b"data": data, b"dtype": found.dtype.str, b"shape": shape}
        return {b"__npgeneric__": True, b"data": found.item(), b"dtype": found.dtype.str}

    return bytes(msgpack.packb(value, default=default))


def read_theirs(data: bytes) -> Any:
    """What openpi's unpacker makes of a message."""

    def hook(found: Any) -> Any:
        if b"__ndarray__" in found:
            return np.ndarray(buffer=found[b"data"], dtype=np.dtype(found[b"dtype"]), shape=found[b"shape"])
        return found

    return msgpack.unpackb(data, object_hook=hook)


class Client:
    """What openpi's client does with a connection."""

    def __init__(self, socket: Any) -> None:
        self._socket = socket
        self.metadata = read_theirs(socket.recv(20))

    def infer(self, said: Any) -> Any:
        self._socket.send(theirs(said))
        answer = self._socket.recv(20)
        if isinstance(answer, str):
            raise RuntimeError(answer)
        return read_theirs(answer)


@contextlib.contextmanager
def client(url: str, **settings: Any) -> Iterator[Client]:
    with connect(url, compression=None, max_size=None, proxy=None, **settings) as socket:
        yield Client(socket)


PICTURE = np.full((48, 64, 3), 8, np.uint8)


@pytest.mark.parametrize(
    "said",
    [
        {"observation/images/top": PICTURE, "observation/state": np.full(3, 2.5)},
        {"observation.images.top": PICTURE, "observation.state": np.full(3, 2.5, np.float32)},
        {"images": {"top": PICTURE.transpose(2, 0, 1)}, "state": [2.5, 2.5, 2.5]},
        {"top": PICTURE, "state": np.full(3, 2.5), "observation/more": np.zeros(9), "note": "left out"},
    ],
)
def test_their_client_asks_our_server(said: dict[str, Any]) -> None:
    with serving(Echo(), server=OpenpiServer) as url, client(url) as openpi:
        assert openpi.metadata["schema"]["policy"] == "echo"
        answer = openpi.infer({**said, "prompt": "go on"})
        assert answer["actions"].tolist() == [[2.5] * 3] * 4 + [[8, 5, 0]]
        assert answer["server_timing"]["infer_ms"] >= 0


def test_their_client_waits_for_a_cold_policy() -> None:
    with serving(Echo(warm_up=0.5), server=OpenpiServer) as url, client(url) as openpi:
        assert openpi.infer({"top": PICTURE, "state": np.ones(3), "prompt": "go"})["actions"][0, 0] == 1


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"state": np.ones(3), "prompt": "go"}, "lacks observation.images.top"),
        ({"top": PICTURE, "state": np.ones(3)}, "no instruction"),
        ({"top": PICTURE, "state": np.ones(4), "prompt": "go"}, "expected \\(3,\\)"),
        ({"top": PICTURE / 255, "state": np.ones(3), "prompt": "go"}, "uint8"),
        ({"top": PICTURE, "state": "abc", "prompt": "go"}, "no numbers"),
        (
            {"a": {"state": np.ones(3)}, "b": {"state": np.ones(3)}, "top": PICTURE, "prompt": "go"},
            "Which one",
        ),
        ({"top": PICTURE, "state": np.array([np.nan] * 3), "prompt": "go"}, "not finite"),
        ({"top": PICTURE, "state": np.ones(3), "prompt": "x" * 1001}, "1001 characters"),
        ({"top": PICTURE, "state": np.ones(3), "prompt": 5}, "instruction is 5: expected a text"),
    ],
)
def test_their_client_is_told_what_is_wrong_and_may_ask_again(said: dict[str, Any], words: str) -> None:
    with serving(Echo(), server=OpenpiServer) as url, client(url) as openpi:
        with pytest.raises(RuntimeError, match=words):
            openpi.infer(said)
        assert openpi.infer({"top": PICTURE, "state": np.ones(3), "prompt": "go"})["actions"].shape == (5, 3)


def test_an_api_key_is_a_token() -> None:
    access = Auth(port=0, token=TOKEN)
    with serving(Echo(), access, server=OpenpiServer) as url:
        with client(url, additional_headers={"Authorization": f"Api-Key {TOKEN}"}) as openpi:
            assert "schema" in openpi.metadata
        with OpenpiPolicy(url, token=TOKEN) as policy:
            assert policy.predict_action_chunk(observation(1), "go")[0, 0] == 1
        for token in (None, TOKEN[1:]):
            with pytest.raises(WrongTokenError, match="API key"):
                OpenpiPolicy(url, token=token)


def array(**changes: Any) -> bytes:
    whole = {b"__ndarray__": True, b"data": bytes(12), b"dtype": "<f4", b"shape": [3]}
    return bytes(
        msgpack.packb({"state": {**whole, **{key.encode(): value for key, value in changes.items()}}})
    )


UNSAFE = [
    array(dtype="|O"),
    array(dtype="O"),
    array(dtype="|V12"),
    array(dtype="<U1"),
    array(dtype="<c8"),
    array(dtype=[["a", "<f4"]]),
    array(dtype="<f4,<f4"),
    array(dtype=">f4"),
    array(dtype=None),
    array(shape=[2**40, 2**40]),
    array(shape=[-1]),
    array(shape=[4]),
    array(shape=3),
    array(shape=[3.0]),
    array(shape=[1] * 5),
    array(data="text"),
    array(data=None),
    bytes(msgpack.packb({"x": {b"__npgeneric__": True, b"data": "text", b"dtype": "<f4"}})),
    bytes(msgpack.packb({"x": {b"__npgeneric__": True, b"data": 1, b"dtype": "O"}})),
    bytes(msgpack.packb({"x": msgpack.ExtType(1, b"pickle")})),
    bytes(msgpack.packb({"x": b"bytes"})),
    bytes(msgpack.packb({b"x": 1})),
    bytes(msgpack.packb({"a": {"b": {"c": {"d": {"e": 1}}}}})),
    bytes(msgpack.packb({str(number): number for number in range(65)})),
    b"\xdf\xff\xff\xff\xff",
    b"\x81\xa1x\xc6\xff\xff\xff\xff",
    b"",
    b"\xc1",
]


@pytest.mark.parametrize("data", UNSAFE, ids=range(len(UNSAFE)))
def test_what_is_not_safe_is_not_read(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        unpack(data)


def test_who_sends_it_is_thrown_out_and_nobody_else() -> None:
    with serving(Echo(), server=OpenpiServer) as url, client(url) as other:
        for data in (array(dtype="|O"), b"\xc1", "text", theirs([1, 2])):
            with client(url) as openpi:
                openpi._socket.send(data)
                assert isinstance(openpi._socket.recv(20), str)
                with pytest.raises(Exception, match="1008"):
                    openpi._socket.recv(20)
        assert other.infer({"top": PICTURE, "state": np.ones(3), "prompt": "go"})["actions"].shape == (5, 3)


def test_what_is_written_is_read_by_both() -> None:
    value = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": [1, "x", 2.5, None], "c": {"d": PICTURE}}
    for data in (pack(value), theirs(value)):
        for found in (unpack(data), read_theirs(data)):
            assert found["b"] == value["b"]
            np.testing.assert_array_equal(found["a"], value["a"])
            np.testing.assert_array_equal(found["c"]["d"], PICTURE)
    assert unpack(theirs({"x": np.float64(1.5), "y": np.array(2)})) == {"x": 1.5, "y": 2}
    for unsafe in (np.array([object()]), np.array(["text"]), object(), b"bytes" and {1, 2}):
        with pytest.raises(ProtocolError, match="does not carry"):
            pack({"x": unsafe})


# Their server


@contextlib.contextmanager
def their_server(infer: Callable[[Any], Any], metadata: Any = None) -> Iterator[str]:
    def handle(socket: ServerConnection) -> None:
        socket.send(theirs(metadata or {}))
        with contextlib.suppress(Exception):
            while True:
                answer = infer(read_theirs(socket.recv()))  # type: ignore[arg-type]
                socket.send(answer if isinstance(answer, str) else theirs(answer))

    with serve(handle, "127.0.0.1", 0, compression=None, max_size=None) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"openpi+ws://127.0.0.1:{server.socket.getsockname()[1]}"
        finally:
            server.shutdown()
            thread.join()


KEYS = {CAMERA: "observation/image", STATE: "observation/state"}


def test_we_ask_their_server() -> None:
    seen: list[Any] = []

    def infer(said: Any) -> Any:
        seen.append(said)
        return {"actions": np.tile(said["observation/state"].astype(np.float64), (5, 1)), "server_timing": {}}

    with their_server(infer) as url, OpenpiPolicy(url, schema=SCHEMA, keys=KEYS) as policy:
        assert isinstance(policy, ChunkPolicy)
        chunk = policy.predict_action_chunk(observation(2, 9), "go", seed=3)
        assert chunk.dtype == np.float32 and chunk.tolist() == [[2.0] * 3] * 5
        with pytest.raises(MissingFeatureError):
            policy.predict_action_chunk({STATE: np.ones(3)}, "go")
        policy.reset()
    assert set(seen[0]) == {"observation/image", "observation/state", "prompt"} and seen[0]["prompt"] == "go"
    assert seen[0]["observation/image"].dtype == np.uint8 and seen[0]["observation/image"][0, 0, 0] == 9


def test_our_client_asks_our_server_of_their_kind() -> None:
    with serving(Echo(), server=OpenpiServer) as url, OpenpiPolicy("openpi+" + url) as policy:
        assert policy.schema == SCHEMA
        assert policy.predict_action_chunk(observation(4), "go")[0, 0] == 4


def test_an_answer_that_comes_late_is_nobodys() -> None:
    gate = threading.Event()

    def infer(said: Any) -> Any:
        if said["state"][0] == 1:
            gate.wait(20)
        return {"actions": np.tile(said["state"], (5, 1))}

    keys = {STATE: "state"}
    with their_server(infer) as url, OpenpiPolicy(url, schema=SCHEMA, keys=keys, timeout=20) as policy:
        with pytest.raises(TimedOutError):
            policy.predict_action_chunk(observation(1), "go", timeout=0.1)
        gate.set()
        assert policy.predict_action_chunk(observation(2), "go")[0, 0] == 2


def test_what_their_server_does_wrong_has_a_name() -> None:
    answers: list[Any] = ["Traceback: out of memory", {"actions": np.full((5, 3), np.nan)}, {"no": 1}]
    with their_server(lambda said: answers.pop(0)) as url, OpenpiPolicy(url, schema=SCHEMA) as policy:
        with pytest.raises(PolicyFailedError, match="out of memory"):
            policy.predict_action_chunk(observation(), "go")
        for _ in range(2):
            with pytest.raises(ProtocolError, match="not a finite chunk"):
                policy.predict_action_chunk(observation(), "go")
    with pytest.raises(ClientError):
        policy.predict_action_chunk(observation(), "go")
    with pytest.raises(ConnectError, match="No openpi server"):
        OpenpiPolicy(url, schema=SCHEMA)
    with their_server(lambda said: said) as url, pytest.raises(SchemaMismatchError, match="openpi_schema"):
        OpenpiPolicy(url)


def test_a_server_that_begins_anew_is_found_again() -> None:
    with their_server(lambda said: {"actions": np.ones((5, 3))}) as url:
        policy = OpenpiPolicy(url, schema=SCHEMA)
        port = int(url.rpartition(":")[2])
    with pytest.raises((ServerLostError, ConnectError)):
        policy.predict_action_chunk(observation(), "go")
    with serving(Echo(), Auth(port=port), server=OpenpiServer):
        assert policy.predict_action_chunk(observation(3), "go")[0, 0] == 3
    policy.close()


def test_a_file_says_what_their_policy_looks_at(tmp_path: Path) -> None:
    file = tmp_path / "schema.json"
    said = {
        "policy": "pi0",
        "cameras": {CAMERA: [224, 224]},
        "vectors": {STATE: 8},
        "action": 7,
        "chunk_size": 10,
        "n_action_steps": 5,
        "keys": {CAMERA: "observation/image"},
    }
    file.write_text(json.dumps(said))
    schema, keys = read_openpi_schema(file)
    assert (schema.action, schema.cameras[CAMERA], keys) == (7, (224, 224), {CAMERA: "observation/image"})
    for wrong in ("{", "[]", json.dumps({**said, "action": 0}), json.dumps({**said, "keys": {"a": 1}})):
        file.write_text(wrong)
        with pytest.raises(ClientError):
            read_openpi_schema(file)


def test_parts_are_found_by_name() -> None:
    fields, arrays = read_observation(SCHEMA, {"observation/state": [1, 2, 3], "prompt": "go"})
    assert fields == {"task": "go"} and list(arrays) == [STATE]
    with pytest.raises(ObservationError):
        read_observation(SCHEMA, {"a/top": 1, "b/top": 2})


def test_a_policy_of_theirs_stands_in_the_place_of_one_of_ours(tmp_path: Path) -> None:
    file = tmp_path / "schema.json"
    schema = {"policy": "pi0", "cameras": {}, "vectors": {STATE: 3}, "action": 3, "chunk_size": 5}
    file.write_text(json.dumps({**schema, "n_action_steps": 2, "keys": {STATE: "state"}}))
    with their_server(lambda said: {"actions": np.tile(said["state"], (5, 1))}) as url:
        assert is_server(url)
        policy = load_from_server(url, {"openpi_schema": file, "timeout": 20})
        states = np.arange(6, dtype=np.float32).reshape(2, 3)
        requests = [Request({STATE: state}, task) for state, task in zip(states, ("go", "stop"), strict=True)]
        assert policy.schema.n_action_steps == 2
        assert [chunk[0].tolist() for chunk in policy.predict(requests)] == [[0, 1, 2], [3, 4, 5]]
        policy.close()
        with pytest.raises(ServerError, match="raw pictures only"):
            load_from_server(url, {"images": "jpeg"})
    with pytest.raises(ServerError, match="tells its schema itself"):
        load_from_server("ws://127.0.0.1:1", {"openpi_schema": file})


def test_an_answer_that_takes_long_is_told_and_a_reset_gives_it_up(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smolact_client.patience.QUIET_S", 0.1)
    gate, found = threading.Event(), []
    with (
        serving(Echo(gate), server=OpenpiServer) as url,
        OpenpiPolicy("openpi+" + url, timeout=600) as policy,
    ):

        def ask() -> None:
            try:
                policy.predict_action_chunk(observation(), "go")
            except ServerLostError as error:
                found.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        until(lambda: "No answer for 0.1 s: waiting for 600 s in all" in caplog.text)
        policy.reset()
        thread.join(60)
        assert len(found) == 1
        gate.set()

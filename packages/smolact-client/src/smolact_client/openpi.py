"""openpi's wire, spoken safely: its messages, and `OpenpiPolicy`, a policy on one of its servers.

A message is msgpack; an array in it is a map of four byte-string keys: {__ndarray__: true, data, dtype, shape}, a single
number one of three: {__npgeneric__: true, data, dtype}. A server tells its metadata first; then each observation is answered by
`actions`, or by a text where something failed. Nothing numbers them, so a question that was given up takes its connection with it.

Source: https://github.com/Physical-Intelligence/openpi, packages/openpi-client (its wire, not its code).
"""

from __future__ import annotations

import contextlib
import json
import math
import socket as sockets
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from numpy.typing import ArrayLike, NDArray
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.sync.client import ClientConnection, connect

from smolact_client.connection import Address
from smolact_client.errors import (
    ClientError,
    ClosedError,
    ConnectError,
    ObservationError,
    PolicyFailedError,
    ProtocolError,
    SchemaMismatchError,
    ServerLostError,
    TimedOutError,
    WrongTokenError,
)
from smolact_client.handshake import read_schema
from smolact_client.leftover import Leftover
from smolact_client.patience import Patience
from smolact_client.policy import Request
from smolact_client.protocol import MAX_DEPTH, MAX_DIMENSIONS, MAX_KEYS, MAX_MESSAGE, MAX_TEXT, Array
from smolact_client.schema import Limits, Schema, check_chunk, check_observation

SCHEME = "openpi+"
_ARRAY, _NUMBER = b"__ndarray__", b"__npgeneric__"
_DTYPES = {
    np.dtype(code).str: np.dtype(code)
    for code in ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8", "?")
}
"""What may come in, by how it is written. No objects, no structures, no texts: `numpy.dtype` is never asked what a name means."""


def pack(value: Any) -> bytes:
    """A message of maps, lists, texts, numbers and arrays.

    Raises:
        ProtocolError: it holds something else.
    """

    def written(found: Any) -> Any:
        if isinstance(found, np.ndarray) and found.dtype.str in _DTYPES:
            return {
                _ARRAY: True,
                b"data": found.tobytes(),
                b"dtype": found.dtype.str,
                b"shape": list(found.shape),
            }
        raise TypeError(f"{getattr(found, 'dtype', type(found).__name__)}")

    try:
        return bytes(msgpack.packb(value, default=written))
    except (TypeError, ValueError, OverflowError) as error:
        raise ProtocolError(f"A message holds what openpi's wire does not carry here: {error}.") from error


def unpack(data: bytes) -> Any:
    """What a message holds; arrays are read-only views of it.

    Raises:
        ProtocolError: it is no such message, too deep or large, or has an array of objects, structures, texts or wrong sizes.
    """
    try:
        found = msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            max_bin_len=MAX_MESSAGE,
            max_str_len=MAX_TEXT,
            max_array_len=MAX_KEYS * 4,
            max_map_len=MAX_KEYS,
            max_ext_len=0,
        )
    except (ValueError, msgpack.exceptions.UnpackException, RecursionError, OverflowError) as error:
        raise ProtocolError(f"A message is not readable ({type(error).__name__}).") from error
    return _read(found, 0)


def _read(value: Any, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise ProtocolError(f"A message is deeper than {MAX_DEPTH}.")
    if isinstance(value, list):
        return [_read(item, depth + 1) for item in value]
    if isinstance(value, dict):
        if _ARRAY in value or _NUMBER in value:
            return _read_array(value)
        if not all(isinstance(key, str) for key in value):
            raise ProtocolError("A message's map has a key that is not a text.")
        return {key: _read(item, depth + 1) for key, item in value.items()}
    if value is None or isinstance(value, (str, int, float)):
        return value
    raise ProtocolError("A message holds what is neither text, number, array, list nor map.")


def _read_array(described: dict[Any, Any]) -> Any:
    name, data = described.get(b"dtype"), described.get(b"data")
    dtype = _DTYPES.get(name) if isinstance(name, str) else None
    if dtype is None:
        raise ProtocolError(f"An array is of the dtype {name!r:.40}: expected one of {', '.join(_DTYPES)}.")
    if _NUMBER in described:
        if not isinstance(data, (int, float)):
            raise ProtocolError("A single number is none.")
        return data
    shape = described.get(b"shape")
    if (
        not isinstance(shape, list)
        or len(shape) > MAX_DIMENSIONS
        or not all(type(side) is int and 1 <= side <= MAX_MESSAGE for side in shape)
    ):
        raise ProtocolError(f"An array has the shape {shape!r:.60}: expected up to {MAX_DIMENSIONS} sizes.")
    if not isinstance(data, bytes) or len(data) != math.prod(shape) * dtype.itemsize:
        raise ProtocolError(f"An array of the shape {shape} {dtype} has another number of bytes.")
    if dtype == np.bool_ and max(data) > 1:
        raise ProtocolError("An array is bool, and holds bytes other than 0 and 1.")
    return np.frombuffer(data, dtype).reshape(shape)


class OpenpiPolicy:
    """A policy on an openpi server: the face of `RemotePolicy`, without what that wire has no place for (seeds, leftovers).

    Args:
        url: `openpi+ws://HOST:PORT`, or `openpi+wss://…`.
        schema: what it looks at and answers. None: as the server's metadata say, which only smolact's do.
        keys: how the server calls what the schema names, such as {"observation.images.top": "observation/image"}; what is
            not in it goes by the schema's name.
        token: openpi's API key.
        timeout: seconds for a question, unless it says otherwise.
        ca_file, connect_timeout, ready_timeout: as of `RemotePolicy`.

    Attributes:
        patience: logs when an answer takes long.

    Raises:
        ConnectError: nobody answers. WrongTokenError: the server wants another key.
        SchemaMismatchError: neither the server nor `schema` says what it looks at.
    """

    def __init__(
        self,
        url: str,
        *,
        schema: Schema | None = None,
        keys: Mapping[str, str] | None = None,
        token: str | None = None,
        timeout: float = 5.0,
        ca_file: str | Path | None = None,
        connect_timeout: float = 10.0,
        ready_timeout: float = 300.0,
    ) -> None:
        self._address = Address(url.removeprefix(SCHEME), token, ca_file, connect_timeout)
        self._keys, self._timeout = dict(keys or {}), timeout
        self.patience = Patience(url)
        self._turn = threading.Lock()
        self._thread = ThreadPoolExecutor(1, "smolact-openpi")
        self._socket: ClientConnection | None = None
        self._is_closed = False
        try:
            self._socket, metadata = self._dial(ready_timeout)
            told = metadata.get("schema") if isinstance(metadata, dict) else None
            if schema is None and told is None:
                raise SchemaMismatchError(
                    f"{url} does not say what its policy looks at. Say it: a schema (--policy.openpi_schema=FILE)."
                )
            self._schema = read_schema(told) if schema is None else schema
        except BaseException:
            self.close()
            raise

    @property
    def schema(self) -> Schema:
        """What the policy looks at and answers."""
        return self._schema

    def predict_action_chunk(
        self,
        observation: Mapping[str, ArrayLike],
        task: str | None,
        *,
        timeout: float | None = None,
        seed: int | None = None,
        leftover: Leftover | None = None,
    ) -> NDArray[np.float32]:
        """The next actions (T, A) float32, in the robot's units; the server draws as it likes, whatever `seed` says.

        Raises:
            ObservationError: the policy can't look at this, or it is given a leftover.
            TimedOutError: no answer in time; the connection is given up with it, and made anew at the next question.
            ConnectError, ServerLostError: there is no connection.
            PolicyFailedError: what the server said instead of actions.
            ProtocolError: the answer is no chunk.
        """
        if self._is_closed:
            raise ClosedError("This client was closed.")
        if leftover is not None:
            raise ObservationError("openpi's wire has no place for what is left of a chunk.")
        arrays: dict[str, Array] = {}
        for name in self._schema.inputs:
            if name in observation:
                picture = name in self._schema.cameras
                arrays[name] = np.asarray(observation[name], None if picture else np.float32)
        check_observation(self._schema, Limits(), arrays, task)
        said = {self._keys.get(name, name): array for name, array in arrays.items()}
        data = pack(said if task is None else {**said, "prompt": task})
        timeout = self._timeout if timeout is None else timeout
        end = time.monotonic() + timeout
        if not self._turn.acquire(timeout=timeout):
            raise TimedOutError(f"Another thread's question took all of the {timeout:g} s.")
        try:
            asked = self._thread.submit(self._ask, data)
            answer = self._wait(asked, end - time.monotonic(), timeout)
        finally:
            self._turn.release()
        actions = answer.get("actions") if isinstance(answer, dict) else None
        if isinstance(actions, np.ndarray) and actions.dtype.kind == "f":
            actions = actions.astype(np.float32)
        return check_chunk(actions, self._schema)

    def predict(
        self, requests: Sequence[Request], *, timeout: float | None = None
    ) -> list[NDArray[np.float32]]:
        """A chunk (T, A) for each request, one after the other, as openpi's protocol has no batches."""
        return [
            self.predict_action_chunk(
                one.observation, one.task, timeout=timeout, seed=one.seed, leftover=one.leftover
            )
            for one in requests
        ]

    def reset(self) -> None:
        """An episode begins: a question that waits in another thread is given up, and its connection with it."""
        if self._turn.locked():
            self._hang_up()

    def close(self) -> None:
        """Hang up."""
        self._is_closed = True
        self._hang_up()
        self._thread.shutdown(cancel_futures=True)

    def __enter__(self) -> OpenpiPolicy:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _wait(self, asked: Future[Any], seconds: float, timeout: float) -> Any:
        try:
            return self.patience.wait(asked, time.monotonic() + seconds, timeout)
        except FutureTimeoutError as error:
            if asked.done():
                raise
            raise TimedOutError(f"No answer within {timeout:g} s from {self._address.url}.") from error
        finally:
            if not asked.done():  # its answer, when it comes, would be taken for the next question's
                asked.cancel()
                self._hang_up()

    def _ask(self, data: bytes) -> Any:
        socket = self._socket  # which another thread may take away meanwhile (`reset`, `close`)
        if socket is None:
            socket, _ = self._dial(self._address.timeout)
            self._socket = socket
        try:
            socket.send(data)
            answer = socket.recv()
        except (ConnectionClosed, OSError) as error:
            self._hang_up()
            raise ServerLostError(f"{self._address.url} hung up ({error}).") from error
        if isinstance(answer, str):
            raise PolicyFailedError(f"The server answers: {answer[:1000]}")
        return unpack(answer)

    def _dial(self, patience: float) -> tuple[ClientConnection, Any]:
        """A new connection, and what the server tells first, within `patience` seconds."""
        address = self._address
        headers = {} if address.token is None else {"Authorization": f"Api-Key {address.token}"}
        settings: dict[str, Any] = {
            "compression": None,
            "proxy": None,
            "max_size": MAX_MESSAGE,
            "close_timeout": 1,
        }
        try:
            with contextlib.ExitStack() as unless_it_works:
                dialing = connect(
                    address.url,
                    ssl=address.tls(),
                    additional_headers=headers,
                    open_timeout=address.timeout,
                    **settings,
                )
                socket = unless_it_works.enter_context(dialing)
                metadata = socket.recv(patience)
                if isinstance(metadata, str):
                    raise ConnectError(f"{address.url} begins with a text: it is no openpi server.")
                told = unpack(metadata)
                unless_it_works.pop_all()  # it stays open
                return socket, told
        except ConnectError:
            raise
        except InvalidStatus as error:
            status = error.response.status_code
            if status in (401, 403):
                raise WrongTokenError(
                    f"{address.url} does not take this API key (token; --policy.token_file)."
                ) from error
            raise ConnectError(f"{address.url} answers with HTTP {status}.") from error
        except (OSError, EOFError, WebSocketException) as error:
            raise ConnectError(f"No openpi server answers at {address.url} ({error}).") from error

    def _hang_up(self) -> None:
        socket, self._socket = self._socket, None
        if socket is not None:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(sockets.SHUT_RDWR)  # whoever waits for it in the other thread is woken
            socket.close()


def read_openpi_schema(path: Path) -> tuple[Schema, dict[str, str]]:
    """What a file says of an openpi server's policy: a schema as a welcome has it, and `keys` beside it.

    Raises:
        ClientError: there is no such file, or it says something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise ClientError(f"{path} is no file with JSON ({error}).") from error
    keys = found.pop("keys", {}) if isinstance(found, dict) else None
    if not isinstance(keys, dict) or not all(isinstance(name, str) for name in keys.values()):
        raise ClientError(f'{path}: "keys" is no map of names: expected {{"observation.state": "state"}}.')
    return read_schema(found), keys

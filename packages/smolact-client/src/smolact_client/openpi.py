"""openpi's wire protocol with validated messages, and `OpenpiPolicy`, a policy on an openpi server.

A message is msgpack; an array in it is a map of four byte-string keys: {__ndarray__: true, data, dtype, shape}, a scalar a map
of three: {__npgeneric__: true, data, dtype}. A server sends its metadata first; then it answers each observation with `actions`,
or with a text after a failure. Messages have no numbers, so cancelling a request closes its connection.

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
"""The accepted dtypes by name: no objects, structures or strings. `numpy.dtype` never parses a received name."""


def pack(value: Any) -> bytes:
    """Encode a message of maps, lists, strings, numbers and arrays.

    Raises:
        ProtocolError: it contains another type.
    """

    def encode_array(array: Any) -> Any:
        if isinstance(array, np.ndarray) and array.dtype.str in _DTYPES:
            return {
                _ARRAY: True,
                b"data": array.tobytes(),
                b"dtype": array.dtype.str,
                b"shape": list(array.shape),
            }
        raise TypeError(f"{getattr(array, 'dtype', type(array).__name__)}")

    try:
        return bytes(msgpack.packb(value, default=encode_array))
    except (TypeError, ValueError, OverflowError) as error:
        raise ProtocolError(f"A message holds what openpi's wire does not carry here: {error}.") from error


def unpack(data: bytes) -> Any:
    """Decode a message; arrays are read-only views of it.

    Raises:
        ProtocolError: it is not such a message, too deep or large, or has an array of objects, structures, strings or wrong sizes.
    """
    try:
        message = msgpack.unpackb(
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
    return _read(message, 0)


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


def _read_array(description: dict[Any, Any]) -> Any:
    name, data = description.get(b"dtype"), description.get(b"data")
    dtype = _DTYPES.get(name) if isinstance(name, str) else None
    if dtype is None:
        raise ProtocolError(f"An array is of the dtype {name!r:.40}: expected one of {', '.join(_DTYPES)}.")
    if _NUMBER in description:
        if not isinstance(data, (int, float)):
            raise ProtocolError("A single number is none.")
        return data
    shape = description.get(b"shape")
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
    """A policy on an openpi server: `RemotePolicy`'s interface without seeds and leftovers, which that wire lacks.

    Args:
        url: `openpi+ws://HOST:PORT`, or `openpi+wss://…`.
        schema: the policy's inputs and outputs; None for those of the server's metadata, which only smolact's servers send.
        keys: the schema's names to the server's, such as {"observation.images.top": "observation/image"}; other names are the
            same.
        token: openpi's API key.
        timeout: default seconds for a request.
        ca_file, connect_timeout, ready_timeout: as for `RemotePolicy`.

    Attributes:
        patience: logs slow answers.

    Raises:
        ConnectError: no server answers. WrongTokenError: the API key is wrong.
        SchemaMismatchError: neither the server nor the caller gives a schema.
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
        self._request_lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1, "smolact-openpi")
        self._socket: ClientConnection | None = None
        self._is_closed = False
        try:
            self._socket, metadata = self._connect(ready_timeout)
            served = metadata.get("schema") if isinstance(metadata, dict) else None
            if schema is None and served is None:
                raise SchemaMismatchError(
                    f"{url} does not say what its policy looks at. Say it: a schema (--policy.openpi_schema=FILE)."
                )
            self._schema = read_schema(served) if schema is None else schema
        except BaseException:
            self.close()
            raise

    @property
    def schema(self) -> Schema:
        """The policy's inputs and outputs."""
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
        """Predict the next actions (T, A) float32, in the robot's units; `seed` has no effect.

        Raises:
            ObservationError: the observation does not fit the policy, or there is a leftover.
            TimedOutError: no answer in time; the connection is closed, and the next request reconnects.
            ConnectError, ServerLostError: there is no connection.
            PolicyFailedError: the server sent an error instead of actions.
            ProtocolError: the answer is not a chunk.
        """
        if self._is_closed:
            raise ClosedError("This client was closed.")
        if leftover is not None:
            raise ObservationError("openpi's wire has no place for what is left of a chunk.")
        arrays: dict[str, Array] = {}
        for name in self._schema.inputs:
            if name in observation:
                is_camera = name in self._schema.cameras
                arrays[name] = np.asarray(observation[name], None if is_camera else np.float32)
        check_observation(self._schema, Limits(), arrays, task)
        named = {self._keys.get(name, name): array for name, array in arrays.items()}
        data = pack(named if task is None else {**named, "prompt": task})
        timeout = self._timeout if timeout is None else timeout
        deadline = time.monotonic() + timeout
        if not self._request_lock.acquire(timeout=timeout):
            raise TimedOutError(f"Another thread's question took all of the {timeout:g} s.")
        try:
            future = self._thread.submit(self._ask, data)
            answer = self._wait(future, deadline - time.monotonic(), timeout)
        finally:
            self._request_lock.release()
        actions = answer.get("actions") if isinstance(answer, dict) else None
        if isinstance(actions, np.ndarray) and actions.dtype.kind == "f":
            actions = actions.astype(np.float32)
        return check_chunk(actions, self._schema)

    def predict(
        self, requests: Sequence[Request], *, timeout: float | None = None
    ) -> list[NDArray[np.float32]]:
        """A chunk (T, A) for each request, one after the other, as openpi's protocol has no batches; `timeout` is that of all."""
        end = time.monotonic() + (self._timeout if timeout is None else timeout)
        return [
            self.predict_action_chunk(
                one.observation,
                one.task,
                timeout=max(0.0, end - time.monotonic()),
                seed=one.seed,
                leftover=one.leftover,
            )
            for one in requests
        ]

    def reset(self) -> None:
        """Begin an episode. A request that waits in another thread is cancelled, and its connection closed."""
        if self._request_lock.locked():
            self._disconnect()

    def close(self) -> None:
        """Close the connection."""
        self._is_closed = True
        self._disconnect()
        self._thread.shutdown(cancel_futures=True)

    def __enter__(self) -> OpenpiPolicy:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _wait(self, future: Future[Any], seconds: float, timeout: float) -> Any:
        try:
            return self.patience.wait(future, time.monotonic() + seconds, timeout)
        except FutureTimeoutError as error:
            if future.done():
                raise
            raise TimedOutError(f"No answer within {timeout:g} s from {self._address.url}.") from error
        finally:
            if not future.done():  # its late answer would be mistaken for the next request's
                future.cancel()
                self._disconnect()

    def _ask(self, data: bytes) -> Any:
        socket = self._socket  # another thread may clear the attribute (`reset`, `close`)
        if socket is None:
            socket, _ = self._connect(self._address.timeout)
            self._socket = socket
        try:
            socket.send(data)
            answer = socket.recv()
        except (ConnectionClosed, OSError) as error:
            self._disconnect()
            raise ServerLostError(f"{self._address.url} hung up ({error}).") from error
        if isinstance(answer, str):
            raise PolicyFailedError(f"The server answers: {answer[:1000]}")
        return unpack(answer)

    def _connect(self, metadata_timeout: float) -> tuple[ClientConnection, Any]:
        """Connect, and return the connection and the server's metadata, which must arrive within `metadata_timeout` seconds."""
        address = self._address
        headers = {} if address.token is None else {"Authorization": f"Api-Key {address.token}"}
        settings: dict[str, Any] = {
            "compression": None,
            "proxy": None,
            "max_size": MAX_MESSAGE,
            "close_timeout": 1,
        }
        try:
            with contextlib.ExitStack() as cleanup:
                connection = connect(
                    address.url,
                    ssl=address.tls(),
                    additional_headers=headers,
                    open_timeout=address.timeout,
                    **settings,
                )
                socket = cleanup.enter_context(connection)
                metadata = socket.recv(metadata_timeout)
                if isinstance(metadata, str):
                    raise ConnectError(f"{address.url} begins with a text: it is no openpi server.")
                unpacked = unpack(metadata)
                cleanup.pop_all()  # keeps the connection open
                return socket, unpacked
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

    def _disconnect(self) -> None:
        socket, self._socket = self._socket, None
        if socket is not None:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(sockets.SHUT_RDWR)  # wakes a thread that waits in `recv`
            socket.close()


def read_openpi_schema(path: Path) -> tuple[Schema, dict[str, str]]:
    """Read the schema of an openpi server's policy from JSON: the fields of a welcome's schema, and `keys`.

    Raises:
        ClientError: the file is missing, unreadable or invalid.
    """
    try:
        fields = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise ClientError(f"{path} is no file with JSON ({error}).") from error
    keys = fields.pop("keys", {}) if isinstance(fields, dict) else None
    if not isinstance(keys, dict) or not all(isinstance(name, str) for name in keys.values()):
        raise ClientError(f'{path}: "keys" is no map of names: expected {{"observation.state": "state"}}.')
    return read_schema(fields), keys

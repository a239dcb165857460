"""One connection, which is one session: handshake, requests and answers, for an event loop. `client` has the public class."""

from __future__ import annotations

import asyncio
import contextlib
import http
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI

from smolact_client import handshake
from smolact_client.errors import (
    ClientError,
    ConnectError,
    DroppedError,
    NotReadyError,
    ProtocolError,
    ServerFullError,
    ServerLostError,
    WrongTokenError,
    error_of,
)
from smolact_client.handshake import Welcome
from smolact_client.protocol import MAX_MESSAGE, Array, Message, MessageKind, decode, encode, frames
from smolact_client.schema import Offer

PING_S = 10.0
"""Seconds between pings."""
CLOSE_TIMEOUT_S = 0.3
"""Seconds that the closing handshake may take."""
PONG_S = 30.0
"""Seconds that the answer to a ping may take: a server may be busy compiling."""


@dataclass(frozen=True)
class Address:
    """The address of a server, and the credentials for it.

    Attributes:
        url: `ws://HOST:PORT`, or `wss://HOST:PORT` for TLS.
        token: the access token from the server's operator; never shown.
        ca_file: certificates to trust instead of the system's, for a self-signed server.
        timeout: seconds for connection and handshake.

    Raises:
        ConnectError: the url is not valid.
    """

    url: str
    token: str | None = field(default=None, repr=False)
    ca_file: str | Path | None = None
    timeout: float = 10.0

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("ws", "wss") or not parts.hostname:
            raise ConnectError(
                f"'{self.url}' is no server's address: expected ws://HOST:PORT, or wss://HOST:PORT."
            )
        if parts.username or parts.password:
            raise ConnectError(
                "An address has no name and password in it: a server takes a token (token; --policy.token_file)."
            )

    def tls(self) -> ssl.SSLContext | None:
        """Return the context that verifies the server's certificate; None without TLS."""
        if not self.url.startswith("wss:"):
            return None
        return ssl.create_default_context(cafile=None if self.ca_file is None else str(self.ca_file))


class Connection:
    """An open connection with its session.

    Attributes:
        welcome: the server's welcome.
        lost: set when the connection is lost.
        reason: the reason for that.
        late: the number of answers to requests that no longer wait.
    """

    def __init__(self, socket: ClientConnection, session: int, welcome: Welcome) -> None:
        self.welcome = welcome
        self.lost = asyncio.Event()
        self.late = 0
        self._socket, self._session = socket, session
        self._ready = asyncio.Event()
        self._sequence = 1
        self._pending: dict[int, asyncio.Future[Message]] = {}
        self._send_lock = asyncio.Lock()  # messages are sent in the order of their numbers
        self.reason = ""
        if welcome.ready:
            self._ready.set()
        self._reader = asyncio.create_task(self._read())

    @classmethod
    async def open(cls, address: Address, client: str, offer: Offer | None) -> Connection:
        """Connect and perform the handshake.

        Raises:
            ConnectError: no server answers; `ServerFullError`, `NotReadyError` if the server sends them.
            WrongTokenError, VersionMismatchError, SchemaMismatchError: a retry would not help.
            ProtocolError: the server does not follow this protocol.
        """
        try:
            return await asyncio.wait_for(cls._open(address, client, offer), address.timeout)
        except asyncio.TimeoutError as error:
            raise ConnectError(f"{address.url} did not answer within {address.timeout:g} s.") from error

    @classmethod
    async def _open(cls, address: Address, client: str, offer: Offer | None) -> Connection:
        socket = await _connect(address)
        try:
            await socket.send(
                encode(Message(MessageKind.HELLO, sequence=1, fields=handshake.hello(client, offer)))
            )
            answer = decode(_as_binary(await socket.recv()))
            if answer.kind is MessageKind.ERROR:
                raise _server_error(answer)
            if answer.kind is not MessageKind.WELCOME:
                raise ProtocolError(f"{address.url} answers a hello with {answer.kind.name}.")
            return cls(socket, answer.session, handshake.read_welcome(answer.fields))
        except ConnectionClosed as error:
            raise ConnectError(f"{address.url} hung up during the handshake ({_reason(error)}).") from error
        except BaseException:
            socket.transport.abort()
            raise

    @property
    def is_ready(self) -> bool:
        """Whether the policy is warm."""
        return self._ready.is_set() and not self.lost.is_set()

    async def until_ready(self) -> None:
        """Wait until the policy is warm or the connection is lost."""
        waits = [asyncio.ensure_future(event.wait()) for event in (self._ready, self.lost)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def ask(
        self, fields: Mapping[str, Any], arrays: Mapping[str, Array], abandoned: asyncio.Event | None = None
    ) -> Message:
        """Send an observation and wait for its answer without a time limit; the caller cancels it at a deadline.

        Args:
            fields, arrays: of the message.
            abandoned: once it is set, the observation is not sent any more; a message that is being sent is completed.

        Raises:
            ServerLostError: the connection broke.
            DroppedError: `reset` was called.
            ClientError: the error that the server sent.
        """
        answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        number = 0
        try:
            async with self._send_lock:
                if abandoned is not None and abandoned.is_set():
                    raise DroppedError("The question was dropped: another one of its call failed.")
                self._sequence += 1
                number = self._sequence
                self._pending[number] = answer
                await self._send(
                    Message(MessageKind.OBSERVATION, self._session, number, number, fields, arrays)
                )
            return await answer
        finally:
            self._pending.pop(number, None)
            if answer.done() and not answer.cancelled():
                answer.exception()  # marks it as retrieved, even if sending failed first

    async def reset(self) -> None:
        """Begin an episode: drop the waiting requests here and on the server."""
        self.fail_pending(DroppedError("The question was dropped: an episode began."))
        async with self._send_lock:
            self._sequence += 1
            await self._send(Message(MessageKind.RESET, self._session, self._sequence))

    async def close(self) -> None:
        """Close the connection; abort it if the server does not answer the closing handshake."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._socket.close(), CLOSE_TIMEOUT_S)
        self._socket.transport.abort()
        await asyncio.wait([self._reader])

    async def _send(self, message: Message) -> None:
        try:
            await self._socket.send(frames(message))
        except ConnectionClosed as error:
            raise ServerLostError(f"The server hung up ({_reason(error)}).") from error
        except asyncio.CancelledError:
            self.reason = "half of a message was stuck"  # no later message would arrive
            self.lost.set()  # at once, before the reader does: the next request uses the next connection
            self._socket.transport.abort()
            raise

    async def _read(self) -> None:
        try:
            while True:
                self._handle(decode(_as_binary(await self._socket.recv())))
        except ConnectionClosed as error:
            self.reason = self.reason or _reason(error)
        except ClientError as error:
            self.reason = str(error)
            self._socket.transport.abort()
        finally:
            # Over TLS, Python 3.10 warns of an unclosed transport when the server closed the connection.
            self._socket.transport.close()
            self.lost.set()
            self.fail_pending(ServerLostError(f"The server hung up ({self.reason})."))

    def fail_pending(self, error: ClientError) -> None:
        """Raise `error` in every request that waits for its answer."""
        for answer in self._pending.values():
            if not answer.done():
                answer.set_exception(error)

    def _handle(self, message: Message) -> None:
        if message.session != self._session:
            raise ProtocolError("An answer of another session came.")
        if message.kind is MessageKind.READY:
            self._ready.set()
        elif message.kind not in (MessageKind.CHUNK, MessageKind.ERROR):
            raise ProtocolError(f"The server sent {message.kind.name}, which has no place here.")
        elif message.observation not in self._pending:
            if message.kind is MessageKind.ERROR and not message.observation:
                raise _server_error(message)
            self.late += 1
        elif not (answer := self._pending[message.observation]).done():
            if message.kind is MessageKind.ERROR:
                answer.set_exception(_server_error(message))
            else:
                answer.set_result(message)


async def _connect(address: Address) -> ClientConnection:
    headers = {} if address.token is None else {"Authorization": f"Bearer {address.token}"}
    try:
        return await connect(
            address.url,
            ssl=address.tls(),
            additional_headers=headers,
            compression=None,
            proxy=None,
            max_size=MAX_MESSAGE,
            open_timeout=None,
            ping_interval=PING_S,
            ping_timeout=PONG_S,
            close_timeout=1,
        )
    except InvalidStatus as error:
        raise _refusal(address.url, error) from error
    except ssl.SSLError as error:
        raise ConnectError(
            f"{address.url} could not be trusted: {error.reason or error}. For a server that signed its own certificate, "
            "give that certificate (ca_file)."
        ) from error
    except (OSError, InvalidHandshake, InvalidURI, EOFError) as error:
        hint = (
            ""
            if isinstance(error, OSError) or address.url.startswith("wss:")
            else " If it has TLS, say wss://."
        )
        raise ConnectError(
            f"Nobody answers at {address.url} ({error or type(error).__name__}). Is `smolact serve` running there, "
            f"with this address and port?{hint}"
        ) from error


def _refusal(url: str, error: InvalidStatus) -> ClientError:
    status = error.response.status_code
    if status == http.HTTPStatus.UNAUTHORIZED:
        return WrongTokenError(
            f"{url} does not take this token. Give the one that its operator chose (token; --policy.token_file)."
        )
    if status == http.HTTPStatus.TOO_MANY_REQUESTS:
        return ServerFullError(f"{url} serves as many clients as it may (its --max-clients).")
    if status == http.HTTPStatus.SERVICE_UNAVAILABLE:
        return NotReadyError(f"{url} is not ready.")
    return ConnectError(f"{url} answers with HTTP {status}: it is no smolact server, or not at this path.")


def _server_error(message: Message) -> ClientError:
    return error_of(str(message.fields.get("code")), str(message.fields.get("message")))


def _as_binary(data: str | bytes) -> bytes:
    if isinstance(data, str):
        raise ProtocolError("A text came: this protocol has binary messages only.")
    return data


def _reason(error: ConnectionClosed) -> str:
    close = error.rcvd or error.sent
    return f"{close.code} {close.reason}".strip() if close else "without a word"

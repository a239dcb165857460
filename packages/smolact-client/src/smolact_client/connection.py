"""One connection, which is one session: handshake, questions, answers. For an event loop; `client` is the face for callers."""

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
"""How often an idle connection is tried."""
GOODBYE_S = 0.3
"""How long the other side may take to say goodbye."""
PONG_S = 30.0
"""How long an answer to that may take: a server may be busy compiling."""


@dataclass(frozen=True)
class Address:
    """Where a server is, and how to get in.

    Attributes:
        url: `ws://HOST:PORT`, or `wss://HOST:PORT` for TLS.
        token: what the server's operator gave; never shown.
        ca_file: certificates to trust in place of the system's, for a server that signed its own.
        timeout: seconds for connection and handshake.

    Raises:
        ConnectError: the url is of another kind.
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
        """How to check the server's certificate; None without TLS."""
        if not self.url.startswith("wss:"):
            return None
        return ssl.create_default_context(cafile=None if self.ca_file is None else str(self.ca_file))


class Connection:
    """An open connection with its session.

    Attributes:
        welcome: what the server told.
        lost: is set when the connection is gone.
        reason: why, then.
        late: answers that came for questions that nobody waits for any more.
    """

    def __init__(self, socket: ClientConnection, session: int, welcome: Welcome) -> None:
        self.welcome = welcome
        self.lost = asyncio.Event()
        self.late = 0
        self._socket, self._session = socket, session
        self._ready = asyncio.Event()
        self._sequence = 1
        self._waiting: dict[int, asyncio.Future[Message]] = {}
        self._sending = asyncio.Lock()  # sequence numbers arrive in their order
        self.reason = ""
        if welcome.ready:
            self._ready.set()
        self._reader = asyncio.create_task(self._read())

    @classmethod
    async def open(cls, address: Address, client: str, offer: Offer | None) -> Connection:
        """Connect, and shake hands.

        Raises:
            ConnectError: nobody answers; `ServerFullError`, `NotReadyError` if the server says so.
            WrongTokenError, VersionMismatchError, SchemaMismatchError: trying again would not help.
            ProtocolError: whoever answers does not speak this protocol.
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
            answer = decode(_binary(await socket.recv()))
            if answer.kind is MessageKind.ERROR:
                raise _server_error(answer)
            if answer.kind is not MessageKind.WELCOME:
                raise ProtocolError(f"{address.url} answers a hello with {answer.kind.name}.")
            return cls(socket, answer.session, handshake.read_welcome(answer.fields))
        except ConnectionClosed as error:
            raise ConnectError(f"{address.url} hung up during the handshake ({_why(error)}).") from error
        except BaseException:
            socket.transport.abort()
            raise

    @property
    def is_ready(self) -> bool:
        """Whether the policy is warm."""
        return self._ready.is_set() and not self.lost.is_set()

    async def until_ready(self) -> None:
        """Wait for the policy to be warm, or for the connection to be lost."""
        waits = [asyncio.ensure_future(event.wait()) for event in (self._ready, self.lost)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def ask(self, fields: Mapping[str, Any], arrays: Mapping[str, Array]) -> Message:
        """Send an observation and wait for its answer, as long as it takes: cancel it at a deadline.

        Raises:
            ServerLostError: the connection broke.
            DroppedError: `reset` was called.
            ClientError: what the server told.
        """
        answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        mine = 0
        try:
            async with self._sending:
                self._sequence += 1
                mine = self._sequence
                self._waiting[mine] = answer
                await self._send(Message(MessageKind.OBSERVATION, self._session, mine, mine, fields, arrays))
            return await answer
        finally:
            self._waiting.pop(mine, None)
            if answer.done() and not answer.cancelled():
                answer.exception()  # it was looked at, even if sending failed first

    async def reset(self) -> None:
        """An episode begins: drop what waits, here and there."""
        self._fail_all(DroppedError("The question was dropped: an episode began."))
        async with self._sending:
            self._sequence += 1
            await self._send(Message(MessageKind.RESET, self._session, self._sequence))

    async def close(self) -> None:
        """Hang up; a server that does not say goodbye is not waited for."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._socket.close(), GOODBYE_S)
        self._socket.transport.abort()
        await asyncio.wait([self._reader])

    async def _send(self, message: Message) -> None:
        try:
            await self._socket.send(frames(message))
        except ConnectionClosed as error:
            raise ServerLostError(f"The server hung up ({_why(error)}).") from error
        except asyncio.CancelledError:
            self.reason = "half of a message was stuck"  # nothing behind it would arrive
            self.lost.set()  # now, not when the reader finds out: the next question takes the next connection
            self._socket.transport.abort()
            raise

    async def _read(self) -> None:
        try:
            while True:
                self._take(decode(_binary(await self._socket.recv())))
        except ConnectionClosed as error:
            self.reason = self.reason or _why(error)
        except ClientError as error:
            self.reason = str(error)
            self._socket.transport.abort()
        finally:
            # Over TLS, Python 3.10 takes a transport that the other end closed for a forgotten one.
            self._socket.transport.close()
            self.lost.set()
            self._fail_all(ServerLostError(f"The server hung up ({self.reason})."))

    def _fail_all(self, error: ClientError) -> None:
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(error)

    def _take(self, message: Message) -> None:
        if message.session != self._session:
            raise ProtocolError("An answer of another session came.")
        if message.kind is MessageKind.READY:
            self._ready.set()
        elif message.kind not in (MessageKind.CHUNK, MessageKind.ERROR):
            raise ProtocolError(f"The server sent {message.kind.name}, which has no place here.")
        elif message.observation not in self._waiting:
            if message.kind is MessageKind.ERROR and not message.observation:
                raise _server_error(message)
            self.late += 1
        elif not (answer := self._waiting[message.observation]).done():
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
        raise _refused(address.url, error) from error
    except ssl.SSLError as error:
        raise ConnectError(
            f"{address.url} could not be trusted: {error.reason or error}. For a server that signed its own certificate, "
            "give that certificate (ca_file)."
        ) from error
    except (OSError, InvalidHandshake, InvalidURI, EOFError) as error:
        speaks = (
            ""
            if isinstance(error, OSError) or address.url.startswith("wss:")
            else " If it has TLS, say wss://."
        )
        raise ConnectError(
            f"Nobody answers at {address.url} ({error or type(error).__name__}). Is `smolact serve` running there, "
            f"with this address and port?{speaks}"
        ) from error


def _refused(url: str, error: InvalidStatus) -> ClientError:
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


def _binary(data: str | bytes) -> bytes:
    if isinstance(data, str):
        raise ProtocolError("A text came: this protocol has binary messages only.")
    return data


def _why(error: ConnectionClosed) -> str:
    close = error.rcvd or error.sent
    return f"{close.code} {close.reason}".strip() if close else "without a word"

"""The policy server: one policy, many robots. WebSocket sessions run on an event loop, inference in one thread.

    message ─► decoded and checked ─► slot of the session (newest request) ─► batch of one kind ─► policy ─► replies

The protocol is `smolact_client.protocol`. No message is trusted: sizes are checked before memory is allocated, images before they are
decoded. An error reply describes the client's mistake and contains no server internals.
"""

from __future__ import annotations

import asyncio
import contextlib
import http
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from smolact.runtime.policy import Policy
from smolact.serving.auth import Auth
from smolact.serving.budget import MeteredConnection
from smolact.serving.inference_worker import BatchResult, InferenceWorker
from smolact.serving.metrics import Metrics
from smolact.serving.sessions import PendingRequest, RequestQueue, Session, log
from smolact.serving.sockets import LimitedSocket, PendingConnections, open_sockets
from smolact_client import handshake
from smolact_client.errors import (
    ClientError,
    NotReadyError,
    ObservationError,
    ProtocolError,
    ServerFullError,
    TimedOutError,
)
from smolact_client.leftover import LEFTOVER, check_leftover, read_leftover
from smolact_client.protocol import Message, MessageKind, decode, read_header
from smolact_client.schema import Limits, check_observation, check_offer, picture_size

logger = logging.getLogger(__name__)

HELLO_S = 10.0
"""Seconds that a client may take to send HELLO."""
PING_S, PONG_S = 10.0, 30.0


class PolicyServer:
    """Serves one policy until it is cancelled.

    Args:
        policy: the policy, which runs in one thread on batches.
        limits: limits of a client's messages.
        clock: clock of the deadlines, in seconds.
    """

    session_type = Session

    def __init__(
        self,
        policy: Policy,
        access: Auth | None = None,
        *,
        limits: Limits | None = None,
        max_clients: int = 32,
        max_batch: int = 8,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._policy, self._schema = policy, policy.schema
        self.access, self.limits = access or Auth(), limits or Limits(requests=max_batch)
        self.max_clients, self.max_batch = max_clients, max_batch
        self.metrics = Metrics()
        self.is_ready = False
        self._clock = clock
        self._sessions: set[Session] = set()
        self._queue: RequestQueue[Session, PendingRequest] = RequestQueue()
        self._arrived = asyncio.Event()
        self._replies: set[asyncio.Task[None]] = set()
        self._pending = PendingConnections(
            2 * max_clients + 64, lambda: self.metrics.reject("too_many_sockets")
        )

    async def run(self, started: Callable[[str], None] = lambda url: None) -> None:
        """Listen, warm up and serve until cancelled.

        Args:
            started: called with the address as soon as clients can connect.

        Raises:
            ServerError: the address cannot be bound.
            SmolactError: the errors of the policy's warm-up.
        """
        worker = InferenceWorker(self._policy, self.limits.pixels)
        with contextlib.closing(worker), ThreadPoolExecutor(1, "policy") as executor:
            listeners = await open_sockets(self.access.host, self.access.port, self._pending)
            servers = [await self._serve(listener) for listener in listeners]
            try:
                host, port = listeners[0].getsockname()[:2]
                host = f"[{host}]" if ":" in host else host
                started(f"{'ws' if self.access.tls is None else 'wss'}://{host}:{port}")
                await self._run_inference(executor, worker)
            finally:
                for server in servers:
                    server.close()
                self._pending.clear()  # unfinished handshakes would delay the shutdown
                await asyncio.gather(*(server.wait_closed() for server in servers))

    async def _serve(self, listener: LimitedSocket) -> Server:
        server: Server = await serve(
            self._handle,
            sock=listener,
            ssl=self.access.tls,
            process_request=self._process_request,
            create_connection=self._metered_connections(),
            origins=[None],  # requests of web pages have an origin and are refused
            compression=None,
            max_size=self.limits.message_bytes,
            max_queue=4,
            open_timeout=HELLO_S,
            ping_interval=PING_S,
            ping_timeout=PONG_S,
            close_timeout=1,
            server_header=None,
            logger=_quiet_logger(),
        )
        return server

    # Connections

    def _metered_connections(self) -> type[ServerConnection]:
        policy_server = self

        class CountedConnection(MeteredConnection):
            """A connection whose disconnection for small frames is counted by the server."""

            def cut_off(self) -> None:
                policy_server.metrics.reject("too_many_frames")
                log("too_many_frames", peer=_peer(self))
                super().cut_off()

        return CountedConnection

    def _process_request(self, socket: ServerConnection, request: Request) -> Response | None:
        path = request.path.partition("?")[0]
        if path in ("/livez", "/healthz"):
            return socket.respond(http.HTTPStatus.OK, "alive\n")
        if path == "/readyz":
            status = http.HTTPStatus.OK if self.is_ready else http.HTTPStatus.SERVICE_UNAVAILABLE
            return socket.respond(status, "ready\n" if self.is_ready else "warming up\n")
        tokens = request.headers.get_all("Authorization")
        if not self.access.admits(tokens[0] if len(tokens) == 1 else None):
            self.metrics.reject("wrong_token")
            log("wrong_token", peer=_peer(socket))
            response = socket.respond(http.HTTPStatus.UNAUTHORIZED, "This server wants another token.\n")
            response.headers["WWW-Authenticate"] = "Bearer"
            return response
        if path == "/metrics":
            gauges = {"ready": self.is_ready, "sessions": len(self._sessions), "waiting": len(self._queue)}
            response = socket.respond(http.HTTPStatus.OK, self.metrics.text(gauges))
            del response.headers["Content-Type"]
            response.headers["Content-Type"] = "text/plain; version=0.0.4; charset=utf-8"
            return response
        if path != "/":
            return socket.respond(http.HTTPStatus.NOT_FOUND, "There is /, /livez, /readyz and /metrics.\n")
        if len(self._sessions) >= self.max_clients:
            self.metrics.reject("full")
            return socket.respond(http.HTTPStatus.TOO_MANY_REQUESTS, "This server is full.\n")
        return None

    async def _handle(self, socket: ServerConnection) -> None:
        session = self.session_type(self.metrics.sessions + 1, socket)
        self.metrics.sessions += 1
        reason = "closed"
        try:
            await self._run_session(session)
        except ConnectionClosed as error:
            reason = "lost" if error.rcvd is None else "closed"
        except asyncio.TimeoutError:
            reason = "silent"
        except ClientError as error:
            reason = error.code
            self.metrics.reject(error.code)
            await session.send_error(error)
            await socket.close(1008, error.code)
        finally:
            self._sessions.discard(session)
            self._drop_requests(session)
            log("session_ended", session=session.number, why=reason)

    async def _run_session(self, session: Session) -> None:
        """Run a session until its client disconnects; raises `ClientError` for invalid messages."""
        hello = decode(await asyncio.wait_for(_receive(session.socket), HELLO_S))
        if hello.kind is not MessageKind.HELLO:
            raise ProtocolError(f"The first message is {hello.kind.name}: expected HELLO.")
        offer = handshake.read_hello(hello.fields)
        masked = () if offer is None else check_offer(self._schema, offer)
        session.received = hello.sequence
        client = str(hello.fields.get("client", ""))[:80]
        log("session_began", session=session.number, peer=_peer(session.socket), client=client)
        if masked:
            log("cameras_masked", session=session.number, cameras=" ".join(masked))
        self._register(session)
        # From here on `_run_inference` sends READY after the warm-up; a session's messages keep their order.
        welcome = handshake.welcome(self._schema, self.limits, self.is_ready)
        await session.send(MessageKind.WELCOME, fields=welcome)
        while True:
            data = await _receive(session.socket)
            self.metrics.received += len(data)
            self._on_message(session, decode(data))

    def _register(self, session: Session) -> None:
        """Register a session whose handshake is complete; its connection is no longer pending.

        Raises:
            ServerFullError: the limit of sessions is reached.
        """
        if len(self._sessions) >= self.max_clients:
            raise ServerFullError("This server is full.")
        self._pending.leave(session.socket.remote_address)
        self._sessions.add(session)

    # Requests

    def _on_message(self, session: Session, message: Message) -> None:
        if message.session != session.id or message.sequence <= session.received:
            raise ProtocolError("A message is of another session, or came twice.")
        session.received = message.sequence
        if message.kind is MessageKind.RESET:
            session.reset_sequence = message.sequence
            self._drop_requests(session)
        elif message.kind is MessageKind.OBSERVATION and message.observation == message.sequence:
            try:
                self._enqueue(session, message)
            except (ObservationError, NotReadyError) as error:
                self._refuse(session, error, message.observation)
        else:
            raise ProtocolError(f"A client has no business to send {message.kind.name}.")

    def _refuse(self, session: Session, error: ClientError, observation: int) -> None:
        self.metrics.requests["refused"] += 1
        self._reply(session.send_error(error, observation))

    def _enqueue(self, session: Session, message: Message) -> None:
        task, seed, deadline_ms = (message.fields.get(name) for name in ("task", "seed", "deadline_ms"))
        if "task" not in message.fields:
            raise ObservationError("There is no instruction (task) with the observation.")
        if deadline_ms is not None and not (type(deadline_ms) is int and deadline_ms > 0):
            raise ObservationError("deadline_ms is no number above 0.")
        arrays = dict(message.arrays)
        leftover = read_leftover(message.fields, arrays.pop(LEFTOVER, None))
        check_observation(self._schema, self.limits, arrays, task, seed)
        if leftover is not None:
            check_leftover(self._schema, leftover)
        if not self.is_ready:
            raise NotReadyError("The policy is warming up.")
        sizes = tuple((name, picture_size(arrays[name])) for name in self._schema.cameras if name in arrays)
        slot = message.fields.get("slot", 0)
        if type(slot) is not int or not 0 <= slot < self.limits.requests:
            raise ObservationError(
                f"The slot is {slot!r:.40}: a session may have {self.limits.requests} observations waiting."
            )
        kind = sizes, None if leftover is None else leftover.kind
        now = self._clock()
        limit_s = self.limits.deadline_s
        deadline = now + (limit_s if deadline_ms is None else min(limit_s, deadline_ms / 1000))
        size = sum(array.nbytes for array in arrays.values() if isinstance(array, np.ndarray))
        if slot and size + self._waiting_bytes(session) > 2 * self.limits.message_bytes:
            raise ObservationError(
                f"The observations of this session that wait would take more than {2 * self.limits.message_bytes / 1e6:.0f} MB. "
                "Send fewer at a time."
            )
        request = PendingRequest(session, message.sequence, task, seed, arrays, leftover, kind, now, deadline)
        if self._queue.put((session, slot), request):
            self.metrics.requests["superseded"] += 1
        self._arrived.set()

    def _waiting_bytes(self, session: Session) -> int:
        waiting = (self._queue.get((session, slot)) for slot in range(self.limits.requests))
        return sum(
            array.nbytes
            for request in waiting
            if request is not None
            for array in request.arrays.values()
            if isinstance(array, np.ndarray)
        )

    def _drop_requests(self, session: Session) -> None:
        for slot in range(self.limits.requests):
            if self._queue.drop((session, slot)) is not None:
                self.metrics.requests["dropped"] += 1

    # Inference and replies

    async def _run_inference(self, executor: ThreadPoolExecutor, worker: InferenceWorker) -> None:
        loop = asyncio.get_running_loop()
        began = self._clock()
        await loop.run_in_executor(executor, self._policy.warm_up, self.max_batch)
        self.is_ready = True
        log("ready", seconds=round(self._clock() - began, 3))
        for session in self._sessions:
            self._reply(session.send(MessageKind.READY))
        while True:
            await self._arrived.wait()
            batch = [request for _, request in self._queue.take(self.max_batch, lambda request: request.kind)]
            if not len(self._queue):
                self._arrived.clear()
            now = self._clock()
            expired = [request for request in batch if request.deadline <= now]
            batch = [request for request in batch if request.deadline > now]
            for request in expired:
                self.metrics.requests["expired"] += 1
                self._reply(
                    request.session.send_error(
                        TimedOutError("Its turn did not come in time."), request.sequence
                    )
                )
            if batch:
                results = await loop.run_in_executor(executor, worker.answer, batch)
                self._send_results(batch, results, now)

    def _send_results(self, batch: Sequence[PendingRequest], results: BatchResult, began: float) -> None:
        self.metrics.batch.add(len(batch))
        self.metrics.inference.add(results.seconds)
        for request, result in zip(batch, results.results, strict=True):
            self.metrics.waited.add(began - request.enqueued_at)
            if request.session not in self._sessions or request.sequence < request.session.reset_sequence:
                self.metrics.requests["dropped"] += 1
            elif isinstance(result, ClientError):
                self.metrics.requests["failed"] += 1
                self._reply(request.session.send_error(result, request.sequence))
            else:
                self.metrics.requests["answered"] += 1
                timings = {
                    "waited_ms": 1000 * (began - request.enqueued_at),
                    "inference_ms": 1000 * results.seconds,
                }
                self._reply(request.session.send(MessageKind.CHUNK, request.sequence, timings, action=result))

    def _reply(self, sending: Coroutine[Any, Any, None]) -> None:
        """Send without waiting, so that a slow reader delays no other client."""
        task = asyncio.ensure_future(sending)
        self._replies.add(task)
        task.add_done_callback(self._on_replied)

    def _on_replied(self, task: asyncio.Future[None]) -> None:
        self._replies.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("event=reply_failed", exc_info=task.exception())


async def _receive(socket: ServerConnection) -> memoryview:
    """Receive a message into a preallocated buffer, piece by piece, so that the last byte leaves little to do.

    Raises:
        ProtocolError: the message is text, has no valid header, or is longer than its header declares.
        VersionMismatchError: as in `read_header`.
    """
    buffer, length = memoryview(b""), 0
    async for piece in socket.recv_streaming():
        if isinstance(piece, str):
            raise ProtocolError("A text came: this protocol has binary messages only.")
        if not length:
            size = read_header(piece).total
            buffer = np.empty(size, np.uint8).data  # uninitialized: pages are allocated as bytes arrive
        if length + len(piece) > len(buffer):
            raise ProtocolError(f"A message is longer than the {len(buffer)} bytes that its header tells of.")
        buffer[length : length + len(piece)] = piece
        length += len(piece)
    return buffer[:length]


def _peer(socket: ServerConnection) -> str:
    address = socket.remote_address
    return f"{address[0]}:{address[1]}" if address else ""


def _quiet_logger() -> logging.Logger:
    """Return a logger that drops the library's tracebacks of broken handshakes, which the server counts and logs itself."""
    quiet = logging.getLogger("smolact.serving.websockets")
    quiet.setLevel(logging.CRITICAL)
    return quiet

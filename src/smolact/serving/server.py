"""The server: one policy, many robots. WebSocket sessions on an event loop, inference in one thread beside it.

    frame ─► decoded and checked ─► the session's slot (the newest waits) ─► batch of alike questions ─► policy ─► answers

The wire is `smolact_client.protocol`. Nothing in a message is trusted: sizes are checked before memory is taken, pictures
before they are decoded, and a client is told what it did wrong, never where in the code.
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
from smolact.serving.budget import Metered
from smolact.serving.inference_worker import Answers, InferenceWorker
from smolact.serving.metrics import Metrics
from smolact.serving.request_queue import RequestQueue
from smolact.serving.sessions import PendingRequest, Session, log
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
"""How long a client may take to say hello."""
PING_S, PONG_S = 10.0, 30.0


class PolicyServer:
    """Serves one policy until it is cancelled.

    Args:
        policy: is asked in one thread, by batches.
        access: where, and to whom.
        limits: what a client may send.
        max_clients: sessions at a time.
        max_batch: questions that are answered together.
        clock: for deadlines.
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
        self._waiting: RequestQueue[tuple[Session, int], PendingRequest] = RequestQueue()
        self._arrived = asyncio.Event()
        self._replies: set[asyncio.Task[None]] = set()
        self._hall = PendingConnections(2 * max_clients + 64, lambda: self.metrics.reject("too_many_sockets"))

    async def run(self, started: Callable[[str], None] = lambda url: None) -> None:
        """Listen, warm up, answer, until cancelled.

        Args:
            started: is called with the address as soon as clients can connect.

        Raises:
            ServerError: the address can't be listened at.
            SmolactError: what warming up raises.
        """
        answering = InferenceWorker(self._policy, self.limits.pixels)
        with contextlib.closing(answering), ThreadPoolExecutor(1, "policy") as thread:
            doors = await open_sockets(self.access.host, self.access.port, self._hall)
            servers = [await self._serve(door) for door in doors]
            try:
                host, port = doors[0].getsockname()[:2]
                host = f"[{host}]" if ":" in host else host
                started(f"{'ws' if self.access.tls is None else 'wss'}://{host}:{port}")
                await self._work(thread, answering)
            finally:
                for server in servers:
                    server.close()
                self._hall.clear()  # a handshake that nobody finishes is not waited for
                await asyncio.gather(*(server.wait_closed() for server in servers))

    async def _serve(self, door: LimitedSocket) -> Server:
        server: Server = await serve(
            self._handle,
            sock=door,
            ssl=self.access.tls,
            process_request=self._process_request,
            create_connection=self._metered_connections(),
            origins=[None],  # a page in somebody's browser has an origin, and no business here
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

    # Who comes in

    def _metered_connections(self) -> type[ServerConnection]:
        owner = self

        class Counted(Metered):
            """A connection whose server counts who was cut off."""

            def cut_off(self) -> None:
                owner.metrics.reject("too_many_frames")
                log("too_many_frames", peer=_peer(self))
                super().cut_off()

        return Counted

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
            gauges = {"ready": self.is_ready, "sessions": len(self._sessions), "waiting": len(self._waiting)}
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
        why = "closed"
        try:
            await self._talk(session)
        except ConnectionClosed as error:
            why = "lost" if error.rcvd is None else "closed"
        except asyncio.TimeoutError:
            why = "silent"
        except ClientError as error:
            why = error.code
            self.metrics.reject(error.code)
            await session.tell(error)
            await socket.close(1008, error.code)
        finally:
            self._sessions.discard(session)
            self._drop(session)
            log("session_ended", session=session.number, why=why)

    async def _talk(self, session: Session) -> None:
        """All of a session, until its client hangs up; raises what is wrong with it."""
        hello = decode(await asyncio.wait_for(_receive(session.socket), HELLO_S))
        if hello.kind is not MessageKind.HELLO:
            raise ProtocolError(f"The first message is {hello.kind.name}: expected HELLO.")
        offer = handshake.read_hello(hello.fields)
        absent = () if offer is None else check_offer(self._schema, offer)
        session.received = hello.sequence
        client = str(hello.fields.get("client", ""))[:80]
        log("session_began", session=session.number, peer=_peer(session.socket), client=client)
        if absent:
            log("cameras_masked", session=session.number, cameras=" ".join(absent))
        self._admit(session)
        # From here on `_work` tells it when the policy is warm; a session's messages keep their order.
        told = handshake.welcome(self._schema, self.limits, self.is_ready)
        await session.send(MessageKind.WELCOME, fields=told)
        while True:
            data = await _receive(session.socket)
            self.metrics.received += len(data)
            self._take(session, decode(data))

    def _admit(self, session: Session) -> None:
        """It has said who it is: it takes a place of a client, and none at the door.

        Raises:
            ServerFullError: others were quicker.
        """
        if len(self._sessions) >= self.max_clients:
            raise ServerFullError("This server is full.")
        self._hall.leave(session.socket.remote_address)
        self._sessions.add(session)

    # What they ask

    def _take(self, session: Session, message: Message) -> None:
        if message.session != session.id or message.sequence <= session.received:
            raise ProtocolError("A message is of another session, or came twice.")
        session.received = message.sequence
        if message.kind is MessageKind.RESET:
            session.began_anew = message.sequence
            self._drop(session)
        elif message.kind is MessageKind.OBSERVATION and message.observation == message.sequence:
            try:
                self._ask(session, message)
            except (ObservationError, NotReadyError) as error:
                self._refuse(session, error, message.observation)
        else:
            raise ProtocolError(f"A client has no business to send {message.kind.name}.")

    def _refuse(self, session: Session, error: ClientError, observation: int) -> None:
        self.metrics.questions["refused"] += 1
        self._reply(session.tell(error, observation))

    def _ask(self, session: Session, message: Message) -> None:
        task, seed, wait = (message.fields.get(name) for name in ("task", "seed", "deadline_ms"))
        if "task" not in message.fields or not isinstance(task, (str, type(None))):
            raise ObservationError("There is no instruction (task) with the observation.")
        if not (seed is None or (type(seed) is int and 0 <= seed < 2**63)):
            raise ObservationError("The seed is no number from 0 to 2⁶³ − 1.")
        if wait is not None and not (type(wait) is int and wait > 0):
            raise ObservationError("deadline_ms is no number above 0.")
        arrays = dict(message.arrays)
        leftover = read_leftover(message.fields, arrays.pop(LEFTOVER, None))
        check_observation(self._schema, self.limits, arrays, task)
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
        most = self.limits.deadline_s
        until = now + (most if wait is None else min(most, wait / 1000))
        asked = PendingRequest(session, message.sequence, task, seed, arrays, leftover, kind, now, until)
        if self._waiting.put((session, slot), asked):
            self.metrics.questions["superseded"] += 1
        self._arrived.set()

    def _drop(self, session: Session) -> None:
        for slot in range(self.limits.requests):
            if self._waiting.drop((session, slot)) is not None:
                self.metrics.questions["dropped"] += 1

    # What they are answered

    async def _work(self, thread: ThreadPoolExecutor, answering: InferenceWorker) -> None:
        loop = asyncio.get_running_loop()
        began = self._clock()
        await loop.run_in_executor(thread, self._policy.warm_up, self.max_batch)
        self.is_ready = True
        log("ready", seconds=round(self._clock() - began, 3))
        for session in self._sessions:
            self._reply(session.send(MessageKind.READY))
        while True:
            await self._arrived.wait()
            batch = [asked for _, asked in self._waiting.take(self.max_batch, lambda asked: asked.kind)]
            if not len(self._waiting):
                self._arrived.clear()
            now = self._clock()
            late = [asked for asked in batch if asked.until <= now]
            batch = [asked for asked in batch if asked.until > now]
            for asked in late:
                self.metrics.questions["expired"] += 1
                self._reply(
                    asked.session.tell(TimedOutError("Its turn did not come in time."), asked.sequence)
                )
            if batch:
                answers = await loop.run_in_executor(thread, answering.answer, batch)
                self._publish(batch, answers, now)

    def _publish(self, batch: Sequence[PendingRequest], answers: Answers, began: float) -> None:
        self.metrics.batch.add(len(batch))
        self.metrics.inference.add(answers.seconds)
        for asked, result in zip(batch, answers.results, strict=True):
            self.metrics.waited.add(began - asked.since)
            if asked.session not in self._sessions or asked.sequence < asked.session.began_anew:
                self.metrics.questions["dropped"] += 1
            elif isinstance(result, ClientError):
                self.metrics.questions["failed"] += 1
                self._reply(asked.session.tell(result, asked.sequence))
            else:
                self.metrics.questions["answered"] += 1
                took = {"waited_ms": 1000 * (began - asked.since), "inference_ms": 1000 * answers.seconds}
                self._reply(asked.session.send(MessageKind.CHUNK, asked.sequence, took, action=result))

    def _reply(self, sending: Coroutine[Any, Any, None]) -> None:
        """Send without waiting: one that reads slowly delays nobody else."""
        task = asyncio.ensure_future(sending)
        self._replies.add(task)
        task.add_done_callback(self._replies.discard)


async def _receive(socket: ServerConnection) -> memoryview:
    """The next message, put in its place while it comes in, so that little is left to do at its last byte.

    Raises:
        ProtocolError: it is a text, or does not begin with a header, or is longer than that tells.
        VersionMismatchError: as `read_header`.
    """
    room, length = memoryview(b""), 0
    async for piece in socket.recv_streaming():
        if isinstance(piece, str):
            raise ProtocolError("A text came: this protocol has binary messages only.")
        if not length:
            size = read_header(piece).total
            room = np.empty(size, np.uint8).data  # not zeros: its pages are taken as bytes come
        if length + len(piece) > len(room):
            raise ProtocolError(f"A message is longer than the {len(room)} bytes that its header tells of.")
        room[length : length + len(piece)] = piece
        length += len(piece)
    return room[:length]


def _peer(socket: ServerConnection) -> str:
    address = socket.remote_address
    return f"{address[0]}:{address[1]}" if address else ""


def _quiet_logger() -> logging.Logger:
    """The library tells of every broken handshake with a traceback; what matters of it is counted and told here."""
    quiet = logging.getLogger("smolact.serving.websockets")
    quiet.setLevel(logging.CRITICAL)
    return quiet

"""The server: one policy, many robots. WebSocket sessions on an event loop, inference in one thread beside it.

    frame ─► decoded and checked ─► the session's slot (the newest waits) ─► batch of alike questions ─► policy ─► answers

The wire is `smolact_client.protocol`. Nothing in a message is trusted: sizes are checked before memory is taken, pictures
before they are decoded, and a client is told what it did wrong, never where in the code.
"""

from __future__ import annotations

import asyncio
import contextlib
import http
import json
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from smolact.errors import FeatureError, ServerError
from smolact.serving.access import Access
from smolact.serving.local import Question
from smolact.serving.metrics import Metrics
from smolact.serving.waiting import Waiting
from smolact_client import handshake
from smolact_client.errors import (
    ClientError,
    ClosedError,
    NotReadyError,
    ObservationError,
    PolicyFailedError,
    ProtocolError,
    TimedOutError,
)
from smolact_client.protocol import Array, Jpeg, Kind, Message, decode, encode
from smolact_client.schema import Limits, Schema, check_observation, check_offer, picture_size

logger = logging.getLogger(__name__)

HELLO_S = 10.0
"""How long a client may take to say hello."""
SEND_S = 5.0
"""How long a client may take to read an answer."""
PING_S, PONG_S = 10.0, 30.0
Chunk = NDArray[np.float32]


class Predictor(Protocol):
    """What is served: `LocalPolicy` is one."""

    @property
    def schema(self) -> Schema:
        """What it looks at and answers."""
        ...

    def warm_up(self) -> None:
        """Answer once, so that the first client does not wait longer than the second."""
        ...

    def predict(self, questions: Sequence[Question]) -> list[Chunk]:
        """A chunk (T, A) for each question; their pictures have the same sizes."""
        ...


class Session:
    """One client's connection."""

    def __init__(self, number: int, socket: ServerConnection) -> None:
        self.number, self.socket = number, socket
        self.id = secrets.randbits(63) | 1
        self.received = self.began_anew = self._sent = 0
        self._sending = asyncio.Lock()

    async def send(
        self, kind: Kind, observation: int = 0, fields: dict[str, Any] | None = None, **arrays: Array
    ) -> None:
        """Send a message; a client that does not read is cut off."""
        try:
            async with self._sending:
                self._sent += 1
                data = encode(Message(kind, self.id, self._sent, observation, fields or {}, arrays))
                await asyncio.wait_for(self.socket.send(data), SEND_S)
        except asyncio.TimeoutError:
            log("slow_reader", session=self.number)
            self.socket.transport.abort()
        except ConnectionClosed:
            pass  # its handler notices

    async def tell(self, error: ClientError, observation: int = 0) -> None:
        """Send what went wrong."""
        await self.send(Kind.ERROR, observation, {"code": error.code, "message": str(error)[:4000]})


@dataclass(frozen=True)
class Asked:
    """A question as it waits."""

    session: Session
    sequence: int
    task: str | None
    seed: int | None
    arrays: dict[str, Array]
    kind: tuple[Any, ...]
    since: float
    until: float


class Answers(NamedTuple):
    """What came of a batch: a chunk or an error for each question, and the seconds that it took."""

    results: list[Chunk | ClientError]
    seconds: float


def log(event: str, **facts: Any) -> None:
    """One line for what happened: `event=… name=value …`, values as JSON."""
    logger.info(
        " ".join([f"event={event}", *(f"{name}={json.dumps(value)}" for name, value in facts.items())])
    )


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

    def __init__(
        self,
        policy: Predictor,
        access: Access | None = None,
        *,
        limits: Limits | None = None,
        max_clients: int = 32,
        max_batch: int = 8,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._policy, self._schema = policy, policy.schema
        self.access, self.limits = access or Access(), limits or Limits()
        self.max_clients, self.max_batch = max_clients, max_batch
        self.metrics = Metrics()
        self.is_ready = False
        self._clock = clock
        self._sessions: set[Session] = set()
        self._waiting: Waiting[Session, Asked] = Waiting()
        self._arrived = asyncio.Event()
        self._replies: set[asyncio.Task[None]] = set()
        self._sockets = 0

    async def run(self, started: Callable[[str], None] = lambda url: None) -> None:
        """Listen, warm up, answer, until cancelled.

        Args:
            started: is called with the address as soon as clients can connect.

        Raises:
            ServerError: the address can't be listened at.
            SmolactError: what warming up raises.
        """
        with ThreadPoolExecutor(1, "policy") as thread, ThreadPoolExecutor(_decoders(), "jpeg") as decoders:
            try:
                server = await serve(
                    self._handle,
                    self.access.host,
                    self.access.port,
                    ssl=self.access.tls,
                    process_request=self._process_request,
                    create_connection=self._counted_connections(),
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
            except OSError as error:
                raise ServerError(
                    f"Nothing can listen at {self.access.host}, port {self.access.port}: {error.strerror or error}. "
                    "Choose another with --host and --port."
                ) from error
            async with server:
                host, port = next(iter(server.sockets)).getsockname()[:2]
                host = f"[{host}]" if ":" in host else host
                started(f"{'ws' if self.access.tls is None else 'wss'}://{host}:{port}")
                await self._work(thread, decoders)

    # Who comes in

    def _counted_connections(self) -> type[ServerConnection]:
        owner = self

        class Counted(ServerConnection):
            """A connection that counts from its first byte, before it said who it is."""

            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                owner._sockets += 1
                super().connection_made(transport)
                if owner._sockets > 2 * owner.max_clients + 64:
                    owner.metrics.reject("too_many_sockets")
                    self.transport.abort()

            def connection_lost(self, exc: Exception | None) -> None:
                owner._sockets -= 1
                super().connection_lost(exc)

        return Counted

    def _process_request(self, socket: ServerConnection, request: Request) -> Response | None:
        path = request.path.partition("?")[0]
        if path == "/livez":
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
        if len(socket.server.connections) >= self.max_clients:
            self.metrics.reject("full")
            return socket.respond(http.HTTPStatus.TOO_MANY_REQUESTS, "This server is full.\n")
        return None

    async def _handle(self, socket: ServerConnection) -> None:
        session = Session(self.metrics.sessions + 1, socket)
        self.metrics.sessions += 1
        why = "closed"
        try:
            hello = decode(_binary(await asyncio.wait_for(socket.recv(), HELLO_S)))
            if hello.kind is not Kind.HELLO:
                raise ProtocolError(f"The first message is {hello.kind.name}: expected HELLO.")
            offer = handshake.read_hello(hello.fields)
            if offer is not None:
                check_offer(self._schema, offer)
            session.received = hello.sequence
            client = str(hello.fields.get("client", ""))[:80]
            log("session_began", session=session.number, peer=_peer(socket), client=client)
            self._sessions.add(session)
            ready = self.is_ready
            await session.send(Kind.WELCOME, fields=handshake.welcome(self._schema, self.limits, ready))
            if self.is_ready and not ready:
                await session.send(Kind.READY)
            async for data in socket:
                self.metrics.received += len(data)
                await self._take(session, decode(_binary(data)))
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

    # What they ask

    async def _take(self, session: Session, message: Message) -> None:
        if message.session != session.id or message.sequence <= session.received:
            raise ProtocolError("A message is of another session, or came twice.")
        session.received = message.sequence
        if message.kind is Kind.RESET:
            session.began_anew = message.sequence
            self._drop(session)
        elif message.kind is Kind.OBSERVATION and message.observation == message.sequence:
            try:
                self._ask(session, message)
            except (ObservationError, NotReadyError) as error:
                self.metrics.questions["refused"] += 1
                await session.tell(error, message.observation)
        else:
            raise ProtocolError(f"A client has no business to send {message.kind.name}.")

    def _ask(self, session: Session, message: Message) -> None:
        task, seed, wait = (message.fields.get(name) for name in ("task", "seed", "deadline_ms"))
        if "task" not in message.fields or not isinstance(task, (str, type(None))):
            raise ObservationError("There is no instruction (task) with the observation.")
        if not (seed is None or (type(seed) is int and 0 <= seed < 2**63)):
            raise ObservationError("The seed is no number from 0 to 2⁶³ − 1.")
        if wait is not None and not (type(wait) is int and wait > 0):
            raise ObservationError("deadline_ms is no number above 0.")
        check_observation(self._schema, self.limits, message.arrays, task)
        if not self.is_ready:
            raise NotReadyError("The policy is warming up.")
        arrays = dict(message.arrays)
        kind = tuple((name, picture_size(arrays[name])) for name in self._schema.cameras)
        now = self._clock()
        most = self.limits.deadline_s
        until = now + (most if wait is None else min(most, wait / 1000))
        if self._waiting.put(session, Asked(session, message.sequence, task, seed, arrays, kind, now, until)):
            self.metrics.questions["superseded"] += 1
        self._arrived.set()

    def _drop(self, session: Session) -> None:
        if self._waiting.drop(session) is not None:
            self.metrics.questions["dropped"] += 1

    # What they are answered

    async def _work(self, thread: ThreadPoolExecutor, decoders: ThreadPoolExecutor) -> None:
        loop = asyncio.get_running_loop()
        began = self._clock()
        await loop.run_in_executor(thread, self._policy.warm_up)
        self.is_ready = True
        log("ready", seconds=round(self._clock() - began, 3))
        for session in self._sessions:
            self._reply(session.send(Kind.READY))
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
                answers = await loop.run_in_executor(thread, self._answer, batch, decoders)
                self._publish(batch, answers, now)

    def _publish(self, batch: Sequence[Asked], answers: Answers, began: float) -> None:
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
                self._reply(asked.session.send(Kind.CHUNK, asked.sequence, took, action=result))

    def _reply(self, sending: Coroutine[Any, Any, None]) -> None:
        """Send without waiting: one that reads slowly delays nobody else."""
        task = asyncio.ensure_future(sending)
        self._replies.add(task)
        task.add_done_callback(self._replies.discard)

    def _answer(self, batch: Sequence[Asked], decoders: ThreadPoolExecutor) -> Answers:
        """In the policy's thread."""
        began = time.monotonic()
        results: list[Chunk | ClientError] = [ClosedError()] * len(batch)
        questions: dict[int, Question] = {}
        for index, found in enumerate(decoders.map(self._question, batch)):
            if isinstance(found, ClientError):
                results[index] = found
            else:
                questions[index] = found
        for index, result in zip(questions, self._predict(list(questions.values())), strict=True):
            results[index] = result
        return Answers(results, time.monotonic() - began)

    def _question(self, asked: Asked) -> Question | ClientError:
        try:
            arrays = {
                name: array.decode(self.limits.pixels) if isinstance(array, Jpeg) else array
                for name, array in asked.arrays.items()
            }
        except ProtocolError as error:
            return ObservationError(str(error))
        return Question(arrays, asked.task, asked.seed)

    def _predict(self, questions: Sequence[Question]) -> list[Chunk | ClientError]:
        if not questions:
            return []
        try:
            chunks = self._policy.predict(questions)
            if len(chunks) != len(questions):
                raise FeatureError(f"The policy gave {len(chunks)} chunks for {len(questions)} questions.")
            return [*chunks]
        except Exception as error:  # whatever a policy raises, the server goes on and the log has it
            if len(questions) > 1:  # one of them may be at fault, the others are not
                return [result for one in questions for result in self._predict([one])]
            number = secrets.token_hex(4)
            logger.exception("event=policy_failed incident=%s", number)
            reason = f": {error}" if isinstance(error, FeatureError) else ""
            return [PolicyFailedError(f"The policy failed (incident {number} in the server's log){reason}")]


@contextlib.contextmanager
def serving(policy: Predictor, access: Access | None = None, **settings: Any) -> Iterator[str]:
    """Serve in a thread for as long as the block runs; gives the address. For notebooks, tests, and measurements.

    Args:
        policy: what is served.
        access: any free port of this machine when not given.
        settings: as `PolicyServer` takes them.

    Raises:
        ServerError: the address can't be listened at.
    """
    started: asyncio.Queue[str] | None = None
    ready = threading.Event()
    found: list[Any] = []

    async def live() -> None:
        nonlocal started
        server = PolicyServer(policy, access or Access(port=0), **settings)
        task = asyncio.current_task()
        assert task is not None
        found[:] = [asyncio.get_running_loop(), task]

        def tell(url: str) -> None:
            found.append(url)
            ready.set()

        with contextlib.suppress(asyncio.CancelledError):
            await server.run(tell)

    def run() -> None:
        try:
            asyncio.run(live())
        except BaseException as error:
            found.append(error)
            ready.set()

    thread = threading.Thread(target=run, name="smolact-server", daemon=True)
    thread.start()
    ready.wait()
    if isinstance(found[-1], BaseException):
        raise found[-1]
    try:
        yield found[2]
    finally:
        loop, task = found[:2]
        loop.call_soon_threadsafe(task.cancel)
        thread.join()


def _binary(data: str | bytes) -> bytes:
    if isinstance(data, str):
        raise ProtocolError("A text came: this protocol has binary messages only.")
    return data


def _peer(socket: ServerConnection) -> str:
    address = socket.remote_address
    return f"{address[0]}:{address[1]}" if address else ""


def _decoders() -> int:
    return min(4, os.cpu_count() or 1)


def _quiet_logger() -> logging.Logger:
    """The library tells of every broken handshake with a traceback; what matters of it is counted and told here."""
    quiet = logging.getLogger("smolact.serving.websockets")
    quiet.setLevel(logging.CRITICAL)
    return quiet

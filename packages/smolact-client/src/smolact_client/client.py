"""`RemotePolicy`: a policy on a server, as if it were here. Raw observations in, the robot's units out.

All talk happens in a thread of its own, so that a deadline holds whatever the network does. That thread keeps a connection:
when it is lost, it makes a new one (with pauses that grow to two seconds, and a new session), asked or not.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import random
import threading
import time
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from smolact_client.connection import Address, Connection
from smolact_client.errors import (
    ClientError,
    ClosedError,
    ConnectError,
    DroppedError,
    NotReadyError,
    ObservationError,
    SchemaMismatchError,
    ServerLostError,
    TimedOutError,
)
from smolact_client.images import QUALITY, encode_jpeg
from smolact_client.leftover import LEFTOVER, Leftover, check_leftover
from smolact_client.patience import Patience
from smolact_client.policy import Request
from smolact_client.protocol import Array, Jpeg
from smolact_client.schema import Limits, Offer, Schema, check_chunk, check_observation

VERSION = "0.1.0"
T = TypeVar("T")


class Answer(NamedTuple):
    """A chunk, and what it took.

    Attributes:
        chunk: (T, A) float32, the robot's units.
        seconds: from the question to the answer, here.
        waited, inference: seconds of that in the server's queue, and in the policy (with the others of its batch).
    """

    chunk: NDArray[np.float32]
    seconds: float
    waited: float
    inference: float


class RemotePolicy:
    """A policy on a server. Any thread may call; questions are asked one at a time.

    Args:
        url: `ws://HOST:PORT`, or `wss://HOST:PORT` for TLS.
        token: what the server's operator gave, if the server wants one.
        offer: what the robot has; the server compares it with its policy. None to leave that out.
        images: `raw`, or `jpeg`: a tenth of the bytes, not quite the same pixels.
        timeout: seconds for a question, unless it says otherwise.
        ca_file: certificates to trust in place of the system's.
        connect_timeout: seconds for connection and handshake.
        ready_timeout: seconds to wait at first for a policy that is warming up.

    Attributes:
        patience: logs when an answer takes long, and when the connection is lost or made anew.

    Raises:
        ConnectError: nobody answers; `NotReadyError` if the policy is still warming up after `ready_timeout`.
        WrongTokenError, VersionMismatchError, SchemaMismatchError: see `errors`.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        offer: Offer | None = None,
        images: Literal["raw", "jpeg"] = "raw",
        quality: int = QUALITY,
        timeout: float = 5.0,
        ca_file: str | Path | None = None,
        connect_timeout: float = 10.0,
        ready_timeout: float = 300.0,
    ) -> None:
        self._address = Address(url, token, ca_file, connect_timeout)
        self.patience = Patience(url)
        self._offer, self._images, self._quality, self._timeout = offer, images, quality, timeout
        self._turn = threading.Lock()
        self._link: Connection | None = None
        self._trouble: ClientError | None = None
        self._late = self._sessions = self._episode = 0
        self._is_closed = self._is_fatal = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self._stopping, self._changed = asyncio.Event(), asyncio.Condition()
        self._first: tuple[Schema, Limits] | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run_loop, name="smolact-client", daemon=True)
        self._thread.start()
        wait = connect_timeout + ready_timeout
        try:
            self._run(self._begin(), time.monotonic() + wait, wait)
        except BaseException:
            self.close()
            raise

    @property
    def schema(self) -> Schema:
        """What the policy looks at and answers."""
        assert self._first is not None
        return self._first[0]

    @property
    def limits(self) -> Limits:
        """What the server takes."""
        assert self._first is not None
        return self._first[1]

    @property
    def sessions(self) -> int:
        """How many sessions there were: 1 and the reconnections."""
        return self._sessions

    @property
    def late(self) -> int:
        """Answers that came too late, and were dropped."""
        return self._late + (0 if self._link is None else self._link.late)

    def predict_action_chunk(
        self,
        observation: Mapping[str, ArrayLike],
        task: str | None,
        *,
        timeout: float | None = None,
        seed: int | None = None,
        leftover: Leftover | None = None,
    ) -> NDArray[np.float32]:
        """The next actions (T, A) float32, in the robot's units; see `ask`."""
        return self.ask(observation, task, timeout=timeout, seed=seed, leftover=leftover).chunk

    def ask(
        self,
        observation: Mapping[str, ArrayLike],
        task: str | None,
        *,
        timeout: float | None = None,
        seed: int | None = None,
        leftover: Leftover | None = None,
    ) -> Answer:
        """What to do now.

        Args:
            observation: cameras (H, W, 3) uint8 and vectors (D,) by the schema's names; what else is there stays here.
            task: the instruction; None for an empty one, on purpose.
            timeout: seconds until the answer is of no use any more.
            seed: what the policy draws from; the same one gives the same answer. None: it draws as it likes.
            leftover: what the answer is to go on from, for a policy whose schema takes one.

        Raises:
            TimedOutError: no answer in time. One that comes later is dropped.
            ServerLostError: the connection broke, and there was no new one in time; `NotReadyError` if the server is
                warming up again. Ask again: in between, a new connection is being made.
            ObservationError: the policy can't look at this; `MissingFeatureError`, `TaskTooLongError`.
            PolicyFailedError: the policy failed.
            SchemaMismatchError: the server began anew, with another policy.
            DroppedError: `reset` was called from another thread.
            ClosedError: `close` was.
        """
        arrays = {name: np.asarray(value) for name, value in observation.items()}
        return self._answers([Request(arrays, task, seed, leftover)], timeout)[0]

    def predict(
        self, requests: Sequence[Request], *, timeout: float | None = None
    ) -> list[NDArray[np.float32]]:
        """A chunk (T, A) for each request. They travel together over one connection, and the server batches them; see `ask`."""
        return [answer.chunk for answer in self._answers(requests, timeout)]

    def _answers(self, requests: Sequence[Request], timeout: float | None) -> list[Answer]:
        began = time.monotonic()
        timeout = self._timeout if timeout is None else timeout
        messages = [self._message(request) for request in requests]
        if not self._turn.acquire(timeout=timeout):
            raise TimedOutError(f"Another thread's question took all of the {timeout:g} s.")
        try:
            answers = self._run(self._ask_all(messages, began + timeout), began + timeout, timeout)
        finally:
            self._turn.release()
        return [answer._replace(seconds=time.monotonic() - began) for answer in answers]

    def _message(self, request: Request) -> tuple[dict[str, Any], dict[str, Array]]:
        """The fields and arrays of a request.

        Raises:
            ObservationError: the policy can't be given this.
        """
        arrays = self._arrays(request.observation)
        check_observation(self.schema, self.limits, arrays, request.task)
        fields: dict[str, Any] = {"task": request.task}
        if request.seed is not None:
            fields["seed"] = request.seed
        if request.leftover is not None:
            check_leftover(self.schema, request.leftover)
            arrays[LEFTOVER] = request.leftover.actions
            fields |= request.leftover.fields
        return fields, arrays

    def reset(self) -> None:
        """An episode begins: a question that waits in another thread raises `DroppedError`, and is never answered."""
        if self._is_closed:
            raise ClosedError("This client was closed.")
        asyncio.run_coroutine_threadsafe(self._tracked(self._reset()), self._loop)

    def close(self) -> None:
        """Hang up. May be called at any time, from any thread, more than once."""
        if self._is_closed:
            return
        self._is_closed = True
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(timeout=5)

    def __enter__(self) -> RemotePolicy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _arrays(self, observation: Mapping[str, ArrayLike]) -> dict[str, Array]:
        arrays: dict[str, Array] = {}
        for name in self.schema.cameras:
            if name in observation:
                picture: NDArray[Any] = np.asarray(observation[name])
                as_jpeg = self._images == "jpeg" and picture.dtype == np.uint8 and picture.ndim == 3
                arrays[name] = Jpeg(encode_jpeg(picture, self._quality)) if as_jpeg else picture
        for name in self.schema.vectors:
            if name in observation:
                try:
                    arrays[name] = np.asarray(observation[name], np.float32)
                except (TypeError, ValueError) as error:
                    raise ObservationError(f"'{name}' holds no numbers: {error}.") from error
        return arrays

    # What follows runs in the client's thread, but for `_run`.

    def _run(self, work: Coroutine[Any, Any, T], deadline: float, timeout: float) -> T:
        if self._is_closed:
            work.close()
            raise ClosedError("This client was closed.")
        future = asyncio.run_coroutine_threadsafe(self._tracked(work), self._loop)
        try:
            if self._first is None:  # connecting, or warming up
                return future.result(max(0.0, deadline - time.monotonic()))
            return self.patience.wait(future, deadline, timeout)
        except concurrent.futures.CancelledError as error:
            raise ClosedError("This client was closed.") from error
        except concurrent.futures.TimeoutError as error:
            if isinstance(error, TimedOutError):
                raise
            why = self._why_late(timeout)  # before the connection is given up for what is stuck in it
            future.cancel()
            raise why from error
        except BaseException:  # Ctrl-C: the answer is of no use any more
            future.cancel()
            raise

    def _why_late(self, timeout: float) -> ClientError:
        link, trouble = self._link, self._trouble
        if link is not None and link.is_ready:
            return TimedOutError(f"No answer within {timeout:g} s from {self._address.url}.")
        if isinstance(trouble, NotReadyError) or (link is not None and not link.lost.is_set()):
            return NotReadyError(f"{self._address.url} is still warming up: no answer within {timeout:g} s.")
        return ServerLostError(
            f"The connection to {self._address.url} is lost, and there is no new one yet: {trouble}"
        )

    def _run_loop(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._live())
        finally:
            self._loop.close()

    async def _live(self) -> None:
        keeper = asyncio.create_task(self._keep())
        await self._stopping.wait()
        tasks = [keeper, *self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._link is not None:
            await self._link.close()

    async def _tracked(self, work: Coroutine[Any, Any, T]) -> T:
        task: Any = asyncio.current_task()
        self._tasks.add(task)
        try:
            return await work
        finally:
            self._tasks.discard(task)

    async def _keep(self) -> None:
        pauses = _pauses()
        while True:
            try:
                link = await Connection.open(self._address, f"smolact-client {VERSION}", self._offer)
                self._check_schema(link)
            except ConnectError as error:
                await self._tell(error)
                await asyncio.sleep(next(pauses))
                continue
            except Exception as error:  # trying again would not help
                self._is_fatal = True
                await self._tell(error if isinstance(error, ClientError) else ClientError(repr(error)))
                return
            self._sessions += 1
            self._link = link
            if self._sessions > 1:
                self.patience.say("It is there again, in a new session.")
            await link.until_ready()
            if link.is_ready:
                pauses = _pauses()
                await self._tell(None)
            await link.lost.wait()
            self._late += link.late
            self._link = None
            self.patience.say(f"The connection is lost ({link.reason}). A new one is being made.")
            await self._tell(ServerLostError(link.reason))
            await asyncio.sleep(next(pauses))

    async def _tell(self, trouble: ClientError | None) -> None:
        self._trouble = trouble
        async with self._changed:
            self._changed.notify_all()

    def _check_schema(self, link: Connection) -> None:
        found = link.welcome.schema, link.welcome.limits
        if self._first is None:
            self._first = found
        elif self._first[0] != found[0]:
            raise SchemaMismatchError(
                f"{self._address.url} began anew and serves another policy ({found[0].policy}) than before "
                f"({self._first[0].policy}). If that is meant, connect anew."
            )

    async def _begin(self) -> None:
        def is_settled() -> bool:
            return self._has_link() or not isinstance(self._trouble, (NotReadyError, type(None)))

        async with self._changed:
            await self._changed.wait_for(is_settled)
        if not self._has_link() and self._trouble is not None:
            raise self._trouble

    def _has_link(self) -> bool:
        return self._link is not None and self._link.is_ready

    async def _ask_all(
        self, messages: Sequence[tuple[dict[str, Any], dict[str, Array]]], deadline: float
    ) -> list[Answer]:
        """The answers; as many requests wait at the same time as the server allows."""
        answers: list[Answer] = []
        while len(answers) < len(messages):
            group = messages[len(answers) : len(answers) + self.limits.requests]
            asking = [
                asyncio.ensure_future(
                    self._ask({**fields, "slot": slot} if slot else fields, arrays, deadline)
                )
                for slot, (fields, arrays) in enumerate(group)
            ]
            try:
                answers += await asyncio.gather(*asking)
            except BaseException:
                for one in asking:
                    one.cancel()
                await asyncio.gather(*asking, return_exceptions=True)
                raise
        return answers

    async def _ask(self, fields: Mapping[str, Any], arrays: Mapping[str, Array], deadline: float) -> Answer:
        episode = self._episode
        while True:
            async with self._changed:
                await self._changed.wait_for(
                    lambda: self._has_link() or self._is_fatal or self._episode != episode
                )
            if self._episode != episode:
                raise DroppedError("The question was dropped: an episode began.")
            link = self._link
            if link is None:
                raise self._trouble or ClientError("There is no connection.")
            left = max(1, round(1000 * (deadline - time.monotonic())))
            try:
                answer = await link.ask({**fields, "deadline_ms": left}, arrays)
            except ServerLostError:
                continue  # the same question, to the next session, while there is time
            chunk = check_chunk(answer.arrays.get("action"), link.welcome.schema)
            waited, inference = (
                float(answer.fields.get(name, 0)) / 1000 for name in ("waited_ms", "inference_ms")
            )
            return Answer(chunk, 0.0, waited, inference)

    async def _reset(self) -> None:
        self._episode += 1
        async with self._changed:  # a question may wait for a connection
            self._changed.notify_all()
        if self._link is not None:
            with contextlib.suppress(ServerLostError):  # a new session has nothing to forget
                await self._link.reset()


_CHANCE = random.Random()  # its own: what a program draws from `random` does not depend on a connection


def _pauses() -> Iterator[float]:
    pause = 0.05
    while True:
        yield pause * _CHANCE.uniform(0.5, 1.0)  # not all robots of a hall at once
        pause = min(2.0, 2 * pause)

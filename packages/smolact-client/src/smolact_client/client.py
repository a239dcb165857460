"""`RemotePolicy`: a policy on a server with a local policy's interface. Raw observations in, the robot's units out.

A background thread does all communication, so that a deadline holds whatever the network does. When the connection is lost,
the thread reconnects by itself, in a new session, with delays that grow to two seconds.
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

T = TypeVar("T")


class Answer(NamedTuple):
    """A chunk and its latency.

    Attributes:
        chunk: (T, A) float32, in the robot's units.
        seconds: from the request to the answer, as the client measures it.
        waited, inference: seconds of that in the server's queue, and in the policy (for the whole batch).
    """

    chunk: NDArray[np.float32]
    seconds: float
    waited: float
    inference: float


class RemotePolicy:
    """A policy on a server. It is thread-safe; requests are sent one at a time.

    Args:
        url: `ws://HOST:PORT`, or `wss://HOST:PORT` for TLS.
        token: the access token from the server's operator, if the server requires one.
        offer: the robot's features, which the server compares with its policy; None to skip the check.
        images: `raw`, or `jpeg`: a tenth of the bytes, lossy.
        timeout: default seconds for a request.
        ca_file: certificates to trust instead of the system's.
        connect_timeout: seconds for connection and handshake.
        ready_timeout: seconds to wait at the start for a policy that is warming up.

    Attributes:
        patience: logs slow answers, lost connections and reconnections.

    Raises:
        ConnectError: no server answers; `NotReadyError` if the policy is still warming up after `ready_timeout`.
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
        self._request_lock = threading.Lock()
        self._link: Connection | None = None
        self._last_error: ClientError | None = None
        self._late = self._sessions = self._episode = 0
        self._is_closed = self._is_fatal = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self._stopping, self._changed = asyncio.Event(), asyncio.Condition()
        self._server_info: tuple[Schema, Limits] | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run_loop, name="smolact-client", daemon=True)
        self._thread.start()
        wait = connect_timeout + ready_timeout
        try:
            self._run(self._wait_until_ready(), time.monotonic() + wait, wait)
        except BaseException:
            self.close()
            raise

    @property
    def schema(self) -> Schema:
        """The policy's inputs and outputs."""
        assert self._server_info is not None
        return self._server_info[0]

    @property
    def limits(self) -> Limits:
        """The server's limits on requests."""
        assert self._server_info is not None
        return self._server_info[1]

    @property
    def sessions(self) -> int:
        """The number of sessions: 1 plus the reconnections."""
        return self._sessions

    @property
    def late(self) -> int:
        """The number of answers that arrived too late and were dropped."""
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
        """Predict the next actions (T, A) float32, in the robot's units; see `ask`."""
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
        """Request a chunk of actions.

        Args:
            observation: cameras (H, W, 3) uint8 and vectors (D,) by the schema's names; other entries are not sent.
            task: the instruction; None for a deliberately empty one.
            timeout: seconds until the answer is useless.
            seed: the policy's random seed, which makes the answer reproducible; None for a random answer.
            leftover: the actions that the answer continues, for a policy whose schema takes a leftover.

        Raises:
            TimedOutError: no answer in time. A later one is dropped.
            ServerLostError: the connection broke and was not restored in time; `NotReadyError` if the server is warming up
                again. Retry: the client keeps reconnecting.
            ObservationError: the observation does not fit the policy; `MissingFeatureError`, `TaskTooLongError`.
            PolicyFailedError: the policy failed.
            SchemaMismatchError: the server restarted with another policy.
            DroppedError: `reset` was called from another thread.
            ClosedError: the client is closed.
        """
        arrays = {name: np.asarray(value) for name, value in observation.items()}
        return self._answers([Request(arrays, task, seed, leftover)], timeout)[0]

    def predict(
        self, requests: Sequence[Request], *, timeout: float | None = None
    ) -> list[NDArray[np.float32]]:
        """Request a chunk (T, A) for each request. They share this connection, and the server batches them; see `ask`."""
        return [answer.chunk for answer in self._answers(requests, timeout)]

    def _answers(self, requests: Sequence[Request], timeout: float | None) -> list[Answer]:
        start = time.monotonic()
        timeout = self._timeout if timeout is None else timeout
        messages = [self._message(request) for request in requests]
        if not self._request_lock.acquire(timeout=timeout):
            raise TimedOutError(f"Another thread's question took all of the {timeout:g} s.")
        try:
            asking = self._ask_all(messages, self._episode, start + timeout)
            answers = self._run(asking, start + timeout, timeout)
        finally:
            self._request_lock.release()
        return [answer._replace(seconds=time.monotonic() - start) for answer in answers]

    def _message(self, request: Request) -> tuple[dict[str, Any], dict[str, Array]]:
        """The fields and arrays of a request.

        Raises:
            ObservationError: the observation or the leftover does not fit the policy.
        """
        arrays = self._arrays(request.observation)
        check_observation(self.schema, self.limits, arrays, request.task, request.seed)
        fields: dict[str, Any] = {"task": request.task}
        if request.seed is not None:
            fields["seed"] = request.seed
        if request.leftover is not None:
            check_leftover(self.schema, request.leftover)
            arrays[LEFTOVER] = request.leftover.actions
            fields |= request.leftover.fields
        return fields, arrays

    def reset(self) -> None:
        """Begin an episode. A request that waits in another thread raises `DroppedError`."""
        if self._is_closed:
            raise ClosedError("This client was closed.")
        self._episode += 1  # here: a request that is made after this call belongs to the new episode
        asyncio.run_coroutine_threadsafe(self._tracked(self._reset()), self._loop)

    def close(self) -> None:
        """Close the connection. May be called at any time, from any thread, more than once."""
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
                image: NDArray[Any] = np.asarray(observation[name])
                as_jpeg = self._images == "jpeg" and image.dtype == np.uint8 and image.ndim == 3
                arrays[name] = Jpeg(encode_jpeg(image, self._quality)) if as_jpeg else image
        for name in self.schema.vectors:
            if name in observation:
                try:
                    arrays[name] = np.asarray(observation[name], np.float32)
                except (TypeError, ValueError) as error:
                    raise ObservationError(f"'{name}' holds no numbers: {error}.") from error
        return arrays

    # The methods below run in the background thread, except `_run` and `_timeout_error`.

    def _run(self, work: Coroutine[Any, Any, T], deadline: float, timeout: float) -> T:
        if self._is_closed:
            work.close()
            raise ClosedError("This client was closed.")
        future = asyncio.run_coroutine_threadsafe(self._tracked(work), self._loop)
        try:
            if self._server_info is None:  # connecting, or warming up
                return future.result(max(0.0, deadline - time.monotonic()))
            return self.patience.wait(future, deadline, timeout)
        except concurrent.futures.CancelledError as error:
            raise ClosedError("This client was closed.") from error
        except concurrent.futures.TimeoutError as error:
            if isinstance(error, TimedOutError):
                raise
            reason = self._timeout_error(timeout)  # before `cancel`, which may abort the connection
            future.cancel()
            raise reason from error
        except BaseException:  # Ctrl-C
            future.cancel()
            raise

    def _timeout_error(self, timeout: float) -> ClientError:
        link, last_error = self._link, self._last_error
        if link is not None and link.is_ready:
            return TimedOutError(f"No answer within {timeout:g} s from {self._address.url}.")
        if isinstance(last_error, NotReadyError) or (link is not None and not link.lost.is_set()):
            return NotReadyError(f"{self._address.url} is still warming up: no answer within {timeout:g} s.")
        return ServerLostError(
            f"The connection to {self._address.url} is lost, and there is no new one yet: {last_error}"
        )

    def _run_loop(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._run_until_closed())
        finally:
            self._loop.close()

    async def _run_until_closed(self) -> None:
        connector = asyncio.create_task(self._maintain_connection())
        await self._stopping.wait()
        tasks = [connector, *self._tasks]
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

    async def _maintain_connection(self) -> None:
        delays = _retry_delays()
        while True:
            try:
                link = await Connection.open(self._address, _name_and_version(), self._offer)
                self._check_schema(link)
            except ConnectError as error:
                await self._set_error(error)
                await asyncio.sleep(next(delays))
                continue
            except Exception as error:  # a retry would not help
                self._is_fatal = True
                await self._set_error(error if isinstance(error, ClientError) else ClientError(repr(error)))
                return
            self._sessions += 1
            self._link = link
            if self._sessions > 1:
                self.patience.warn("It is there again, in a new session.")
            await link.until_ready()
            if link.is_ready:
                delays = _retry_delays()
                await self._set_error(None)
            await link.lost.wait()
            self._late += link.late
            self._link = None
            self.patience.warn(f"The connection is lost ({link.reason}). A new one is being made.")
            await self._set_error(ServerLostError(link.reason))
            await asyncio.sleep(next(delays))

    async def _set_error(self, error: ClientError | None) -> None:
        self._last_error = error
        async with self._changed:
            self._changed.notify_all()

    def _check_schema(self, link: Connection) -> None:
        served = link.welcome.schema, link.welcome.limits
        if self._server_info is not None and self._server_info[0] != served[0]:
            raise SchemaMismatchError(
                f"{self._address.url} began anew and serves another policy ({served[0].policy}) than before "
                f"({self._server_info[0].policy}). If that is meant, connect anew."
            )
        self._server_info = served

    async def _wait_until_ready(self) -> None:
        def is_settled() -> bool:
            return self._has_link() or not isinstance(self._last_error, (NotReadyError, type(None)))

        async with self._changed:
            await self._changed.wait_for(is_settled)
        if not self._has_link() and self._last_error is not None:
            raise self._last_error

    def _has_link(self) -> bool:
        return self._link is not None and self._link.is_ready

    async def _ask_all(
        self, messages: Sequence[tuple[dict[str, Any], dict[str, Array]]], episode: int, deadline: float
    ) -> list[Answer]:
        """The answers; as many requests wait at the same time as the server allows."""
        answers: list[Answer] = []
        while len(answers) < len(messages):
            group = messages[len(answers) : len(answers) + self.limits.requests]
            abandoned = asyncio.Event()
            asking = [
                asyncio.ensure_future(self._ask(fields, arrays, slot, episode, deadline, abandoned))
                for slot, (fields, arrays) in enumerate(group)
            ]
            try:
                answers += await asyncio.gather(*asking)
            except asyncio.CancelledError:  # the deadline, Ctrl-C: `gather` has cancelled them
                raise
            except BaseException:
                # Not cancelled, which would cut off a message in the middle, and the connection with it.
                abandoned.set()
                if self._link is not None:
                    self._link.fail_pending(
                        DroppedError("The question was dropped: another one of its call failed.")
                    )
                for one in asking:
                    one.add_done_callback(_retrieve)
                raise
        return answers

    async def _ask(
        self,
        fields: Mapping[str, Any],
        arrays: Mapping[str, Array],
        slot: int,
        episode: int,
        deadline: float,
        abandoned: asyncio.Event,
    ) -> Answer:
        while not abandoned.is_set():
            async with self._changed:
                await self._changed.wait_for(
                    lambda: self._has_link() or self._is_fatal or self._episode != episode
                )
            if self._episode != episode:
                raise DroppedError("The question was dropped: an episode began.")
            link = self._link
            if link is None:
                raise self._last_error or ClientError("There is no connection.")
            if slot >= link.welcome.limits.requests:
                raise ServerLostError("The server came back and answers fewer requests at a time. Ask again.")
            fields = {**fields, "deadline_ms": max(1, round(1000 * (deadline - time.monotonic())))}
            if slot:
                fields["slot"] = slot
            try:
                answer = await link.ask(fields, arrays, abandoned)
            except ServerLostError:
                continue  # send the same request in the next session, while there is time
            chunk = check_chunk(answer.arrays.get("action"), link.welcome.schema)
            waited, inference = (
                float(answer.fields.get(name, 0)) / 1000 for name in ("waited_ms", "inference_ms")
            )
            return Answer(chunk, 0.0, waited, inference)
        raise DroppedError("The question was dropped: another one of its call failed.")

    async def _reset(self) -> None:
        async with self._changed:  # a request may be waiting for a connection
            self._changed.notify_all()
        if self._link is not None:
            with contextlib.suppress(ServerLostError):  # a new session has no request to drop
                await self._link.reset()


def _retrieve(task: asyncio.Future[Any]) -> None:
    """Mark the error of a request that is no longer awaited as retrieved."""
    if not task.cancelled():
        task.exception()


_RANDOM = random.Random()  # not the global generator, whose draws belong to the program


def _retry_delays() -> Iterator[float]:
    delay = 0.05
    while True:
        yield delay * _RANDOM.uniform(0.5, 1.0)  # jitter: robots do not reconnect all at once
        delay = min(2.0, 2 * delay)


def _name_and_version() -> str:
    """Return this distribution's name and version, which the handshake sends to the server."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"smolact-client {version('smolact-client')}"
    except PackageNotFoundError:  # run from source, not installed
        return "smolact-client"

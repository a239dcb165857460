"""A client's session, its pending requests, and their queue."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed

from smolact_client.errors import ClientError
from smolact_client.leftover import Leftover
from smolact_client.protocol import Array, Message, MessageKind, encode

S = TypeVar("S", bound=Hashable)
Q = TypeVar("Q")

logger = logging.getLogger(__name__)

SEND_S = 5.0
"""Seconds that a client may take to read a reply."""
MAX_UNREAD = 32
"""Replies that may wait to be read."""


class Session:
    """One client's connection."""

    def __init__(self, number: int, socket: ServerConnection) -> None:
        self.number, self.socket = number, socket
        self.id = secrets.randbits(63) | 1
        self.received = self.reset_sequence = self._sent = self._unread = 0
        self._sending = asyncio.Lock()

    async def send(
        self, kind: MessageKind, observation: int = 0, fields: dict[str, Any] | None = None, **arrays: Array
    ) -> None:
        """Send a message; a client that does not read is disconnected."""
        self._unread += 1
        try:
            if self._unread > MAX_UNREAD:
                self._cut_off()
            async with self._sending:
                self._sent += 1
                data = self._encode(Message(kind, self.id, self._sent, observation, fields or {}, arrays))
                if data is not None:
                    await self._send(data)
        except ConnectionClosed:
            pass  # the connection's handler ends the session
        finally:
            self._unread -= 1

    async def _send(self, data: bytes | str) -> None:
        # `wait_for` would create a task.
        timer = asyncio.get_running_loop().call_later(SEND_S, self._cut_off)
        try:
            await self.socket.send(data)
        finally:
            timer.cancel()

    def _cut_off(self) -> None:
        log("slow_reader", session=self.number)
        self.socket.transport.abort()

    def _encode(self, message: Message) -> bytes | str | None:
        """Return the message in this client's protocol; None if the protocol has no such message."""
        return encode(message)

    async def send_error(self, error: ClientError, observation: int = 0) -> None:
        """Send an error."""
        await self.send(MessageKind.ERROR, observation, {"code": error.code, "message": str(error)[:4000]})


@dataclass(frozen=True)
class PendingRequest:
    """A request in the queue; times are in seconds of the server's clock."""

    session: Session
    sequence: int
    task: str | None
    seed: int | None
    arrays: dict[str, Array]
    leftover: Leftover | None
    kind: tuple[Any, ...]
    enqueued_at: float
    deadline: float


class RequestQueue(Generic[S, Q]):
    """A queue with slots, which bound its length: a slot is a session with a number, and holds the newest request.

    The oldest request comes first, sessions take turns, one kind forms a batch.
    """

    def __init__(self) -> None:
        self._slots: dict[tuple[S, int], Q] = {}

    def __len__(self) -> int:
        return len(self._slots)

    def get(self, slot: tuple[S, int]) -> Q | None:
        """The request in a slot."""
        return self._slots.get(slot)

    def put(self, slot: tuple[S, int], request: Q) -> Q | None:
        """Enqueue a request; returns the older one that it replaces, whose position it takes."""
        replaced = self._slots.get(slot)
        self._slots[slot] = request
        return replaced

    def drop(self, slot: tuple[S, int]) -> Q | None:
        """Remove and return the request in a slot, if there is one."""
        return self._slots.pop(slot, None)

    def take(self, limit: int, kind: Callable[[Q], Hashable]) -> list[tuple[S, Q]]:
        """Remove and return the oldest request and up to `limit` − 1 more of its kind.

        Every session's oldest request comes before any session's second, so that one that fills its slots delays the others no
        more than one request does.
        """
        if not self._slots:
            return []
        first = kind(next(iter(self._slots.values())))
        turns: Counter[S] = Counter()
        alike: list[tuple[int, tuple[S, int]]] = []
        for slot, request in self._slots.items():
            if kind(request) == first:
                alike.append((turns[slot[0]], slot))
                turns[slot[0]] += 1
        alike.sort(key=lambda item: item[0])  # stable: the older one first
        return [(slot[0], self._slots.pop(slot)) for _, slot in alike[:limit]]


def log(event: str, **fields: Any) -> None:
    """Log one line: `event=… name=value …`, values as JSON."""
    logger.info(
        " ".join([f"event={event}", *(f"{name}={json.dumps(value)}" for name, value in fields.items())])
    )

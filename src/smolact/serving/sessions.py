"""One client's connection, and a question of its as it waits."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from dataclasses import dataclass
from typing import Any

from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed

from smolact_client.errors import ClientError
from smolact_client.leftover import Leftover
from smolact_client.protocol import Array, Message, MessageKind, encode

logger = logging.getLogger(__name__)

SEND_S = 5.0
"""How long a client may take to read an answer."""
MAX_UNREAD = 32
"""How many answers may wait to be read."""


class Session:
    """One client's connection."""

    def __init__(self, number: int, socket: ServerConnection) -> None:
        self.number, self.socket = number, socket
        self.id = secrets.randbits(63) | 1
        self.received = self.began_anew = self._sent = self._unread = 0
        self._sending = asyncio.Lock()

    async def send(
        self, kind: MessageKind, observation: int = 0, fields: dict[str, Any] | None = None, **arrays: Array
    ) -> None:
        """Send a message; a client that does not read is cut off."""
        self._unread += 1
        try:
            if self._unread > MAX_UNREAD:
                self._cut_off()
            async with self._sending:
                self._sent += 1
                data = self._written(Message(kind, self.id, self._sent, observation, fields or {}, arrays))
                if data is not None:
                    await self._send(data)
        except ConnectionClosed:
            pass  # its handler notices
        finally:
            self._unread -= 1

    async def _send(self, data: bytes | str) -> None:
        # `wait_for` would make a task of it.
        timer = asyncio.get_running_loop().call_later(SEND_S, self._cut_off)
        try:
            await self.socket.send(data)
        finally:
            timer.cancel()

    def _cut_off(self) -> None:
        log("slow_reader", session=self.number)
        self.socket.transport.abort()

    def _written(self, message: Message) -> bytes | str | None:
        """The message on this client's wire; None if that has no place for it."""
        return encode(message)

    async def tell(self, error: ClientError, observation: int = 0) -> None:
        """Send what went wrong."""
        await self.send(MessageKind.ERROR, observation, {"code": error.code, "message": str(error)[:4000]})


@dataclass(frozen=True)
class PendingRequest:
    """A question as it waits."""

    session: Session
    sequence: int
    task: str | None
    seed: int | None
    arrays: dict[str, Array]
    leftover: Leftover | None
    kind: tuple[Any, ...]
    since: float
    until: float


def log(event: str, **facts: Any) -> None:
    """One line for what happened: `event=… name=value …`, values as JSON."""
    logger.info(
        " ".join([f"event={event}", *(f"{name}={json.dumps(value)}" for name, value in facts.items())])
    )

"""How much of the server's time a client may take by sending many small frames: fragments, pings, messages.

A frame costs about the same whatever is in it, so a megabyte in pieces of one byte costs as much as a day of observations. Frames
are counted in the bytes as they come, before the library reads them. Whoever is over the budget is read more slowly, and whoever
stays over it is cut off.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from websockets.asyncio.server import ServerConnection
from websockets.frames import CloseCode
from websockets.protocol import State

SMALL = 16 * 2**10
"""A frame of so many bytes or more costs what its bytes cost, and is not counted."""
RATE, BURST = 1000.0, 1000.0
"""Small frames a second, and at once: a robot at 50 Hz sends 50 messages of one frame, or of a few large ones."""
AT_A_TIME = 64
"""So many are read before others have their turn."""
PATIENCE_S = 5.0
"""How long a client may stay over the budget."""
_REQUEST_END = b"\r\n\r\n"


class Frames:
    """Where frames begin and end in a client's bytes; what is in them is not looked at."""

    def __init__(self) -> None:
        self._rest = 0
        self._head = bytearray()

    def measure(self, data: bytes | bytearray, most: int) -> tuple[int, int]:
        """How many of the next bytes have no more than `most` small frames in them, and how many small frames these are."""
        at = count = 0
        while at < len(data):
            if self._rest:
                step = min(self._rest, len(data) - at)
                self._rest -= step
                at += step
                continue
            if not self._head and count >= most:
                break
            missing = _head_size(self._head) - len(self._head)
            self._head += data[at : at + missing]
            at = min(at + missing, len(data))
            if len(self._head) >= 2 and len(self._head) == _head_size(self._head):
                self._rest = _length(self._head)
                self._head.clear()
                count += self._rest < SMALL
        return at, count


def _head_size(head: bytearray) -> int:
    if len(head) < 2:
        return 2
    return 2 + (4 if head[1] & 0x80 else 0) + {126: 2, 127: 8}.get(head[1] & 0x7F, 0)


def _length(head: bytearray) -> int:
    short = head[1] & 0x7F
    return int.from_bytes(head[2 : {126: 4, 127: 10}[short]], "big") if short > 125 else short


class Paused:
    """A transport whose reading two may pause, the library whose queue is full and the budget; else as it was."""

    def __init__(self, transport: asyncio.BaseTransport, on_resume: Callable[[], None]) -> None:
        self._transport: Any = transport
        self._on_resume = on_resume
        self.is_full = self._is_over = False

    def pause_reading(self) -> None:
        """The library's queue is full."""
        self.is_full = True
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """It has room again."""
        self.is_full = False
        self.over_budget(self._is_over)
        self._on_resume()

    def over_budget(self, is_over: bool) -> None:
        """Whether bytes that were read wait for their turn."""
        self._is_over = is_over
        if self.is_full or is_over:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class Metered(ServerConnection):
    """A connection that reads frames at the rate of its budget."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._frames = Frames()
        self._is_asked, self._tail = False, b""
        self._unread = bytearray()
        self._left, self._looked = BURST, self.loop.time()
        self._over_since: float | None = None
        self._turn: asyncio.Handle | None = None

    def cut_off(self) -> None:
        """It stayed over the budget for too long."""
        self._unread.clear()
        if self.state is not State.OPEN:
            self.transport.abort()
            return
        self.protocol.fail(CloseCode.POLICY_VIOLATION, "too many small messages")
        self.send_data()
        self._turn = self.loop.call_later(1.0, self.transport.abort)  # it need not read why

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self._held = Paused(transport, self._go_on)
        super().connection_made(cast(asyncio.Transport, self._held))

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._forget()
        super().connection_lost(exc)

    def eof_received(self) -> None:
        """See `asyncio.Protocol`. Who hangs up with bytes that wait for their turn is not heard out."""
        self._forget()
        super().eof_received()

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        if not self._is_asked:
            data = self._read_request(data)
        if self._unread or self._turn is not None:
            self._unread += data
            return
        took = self._affordable(data)
        if took:
            super().data_received(data if took == len(data) else data[:took])
        if took < len(data):
            self._unread += data[took:]
            self._wait()

    def _read_request(self, data: bytes) -> bytes:
        """Hand over what belongs to the HTTP request; returns what comes behind it."""
        found = (self._tail + data).find(_REQUEST_END)
        end = len(data) if found < 0 else found + len(_REQUEST_END) - len(self._tail)
        self._is_asked = found >= 0
        self._tail = (self._tail + data)[-3:]
        super().data_received(data[:end])
        return data[end:]

    def _affordable(self, data: bytes | bytearray) -> int:
        """How many of the bytes may be read now; their frames are paid for."""
        now = self.loop.time()
        self._left = min(BURST, self._left + RATE * (now - self._looked))
        self._looked = now
        if self._left >= BURST / 2:
            self._over_since = None
        took, count = self._frames.measure(data, min(AT_A_TIME, int(self._left)))
        self._left -= count
        return took

    def _wait(self) -> None:
        """Bytes are left: others have their turn, and the budget grows meanwhile."""
        self._held.over_budget(True)
        is_over = self._left < 1
        self._turn = self.loop.call_later(AT_A_TIME / RATE if is_over else 0.0, self._next_turn)
        if is_over and self._over_since is None:
            self._over_since = self.loop.time()

    def _next_turn(self) -> None:
        self._turn = None
        if self._over_since is not None and self.loop.time() - self._over_since > PATIENCE_S:
            self.cut_off()
        else:
            self._go_on()

    def _go_on(self) -> None:
        if self._turn is not None or self._held.is_full:
            return
        took = self._affordable(self._unread)
        if took:
            piece = bytes(self._unread[:took])
            del self._unread[:took]
            super().data_received(piece)
        if self._unread:
            self._wait()
        else:
            self._held.over_budget(False)

    def _forget(self) -> None:
        self._unread.clear()
        if self._turn is not None:
            self._turn.cancel()

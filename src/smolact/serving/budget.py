"""A rate limiter for small WebSocket frames: fragments, pings and messages.

A frame costs about the same whatever its size, so a megabyte in frames of one byte costs as much as a day of observations. Frames are
counted in the raw bytes, before the websockets library parses them. A client over its budget is read more slowly; one that stays over
it is disconnected.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from websockets.asyncio.server import ServerConnection
from websockets.frames import CloseCode
from websockets.protocol import State

SMALL = 16 * 2**10
"""Frames with a payload of this many bytes or more are not counted."""
RATE, BURST = 1000.0, 1000.0
"""Small frames per second and in a burst. A robot at 50 Hz sends 50 messages of one frame each, or of a few large ones."""
AT_A_TIME = 64
"""Small frames that are read before the event loop serves other connections."""
PATIENCE_S = 5.0
"""Seconds that a client may stay over the budget."""
_REQUEST_END = b"\r\n\r\n"


class Frames:
    """Finds the frame boundaries in a client's bytes, without reading payloads."""

    def __init__(self) -> None:
        self._payload_left = 0
        self._header = bytearray()

    def measure(self, data: bytes | bytearray, max_frames: int) -> tuple[int, int]:
        """Return how many of the next bytes contain at most `max_frames` small frames, and the number of those frames."""
        position = count = 0
        while position < len(data):
            if self._payload_left:
                step = min(self._payload_left, len(data) - position)
                self._payload_left -= step
                position += step
                continue
            if not self._header and count >= max_frames:
                break
            needed = _header_size(self._header) - len(self._header)
            self._header += data[position : position + needed]
            position = min(position + needed, len(data))
            if len(self._header) >= 2 and len(self._header) == _header_size(self._header):
                self._payload_left = _length(self._header)
                self._header.clear()
                count += self._payload_left < SMALL
        return position, count


def _header_size(header: bytearray) -> int:
    if len(header) < 2:
        return 2
    return 2 + (4 if header[1] & 0x80 else 0) + {126: 2, 127: 8}.get(header[1] & 0x7F, 0)


def _length(header: bytearray) -> int:
    length = header[1] & 0x7F
    return int.from_bytes(header[2 : {126: 4, 127: 10}[length]], "big") if length > 125 else length


class PausableTransport:
    """A transport whose reading is paused by the library, when its queue is full, or by the budget. All else is delegated."""

    def __init__(self, transport: asyncio.BaseTransport, on_resume: Callable[[], None]) -> None:
        self._transport: Any = transport
        self._on_resume = on_resume
        self.is_full = self._is_over = False

    def pause_reading(self) -> None:
        """Pause because the library's queue is full."""
        self.is_full = True
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Resume because the library's queue has space again."""
        self.is_full = False
        self.over_budget(self._is_over)
        self._on_resume()

    def over_budget(self, is_over: bool) -> None:
        """Pause or resume reading, depending on whether unread bytes exceed the budget."""
        self._is_over = is_over
        if self.is_full or is_over:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class MeteredConnection(ServerConnection):
    """A connection that reads small frames no faster than its budget."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._frames = Frames()
        self._has_request, self._tail = False, b""
        self._unread = bytearray()
        self._allowance, self._counted_at = BURST, self.loop.time()
        self._over_since: float | None = None
        self._timer: asyncio.Handle | None = None

    def cut_off(self) -> None:
        """Disconnect the client, which stayed over the budget for too long."""
        self._unread.clear()
        if self.state is not State.OPEN:
            self.transport.abort()
            return
        self.protocol.fail(CloseCode.POLICY_VIOLATION, "too many small messages")
        self.send_data()
        self._timer = self.loop.call_later(1.0, self.transport.abort)  # even if the close frame is unread

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self._pausable = PausableTransport(transport, self._resume)
        super().connection_made(cast(asyncio.Transport, self._pausable))

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._discard_unread()
        super().connection_lost(exc)

    def eof_received(self) -> None:
        """See `asyncio.Protocol`. Unread bytes of a closed connection are dropped."""
        self._discard_unread()
        super().eof_received()

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        if not self._has_request:
            data = self._read_request(data)
        if self._unread or self._timer is not None:
            self._unread += data
            return
        n_bytes = self._affordable(data)
        if n_bytes:
            super().data_received(data if n_bytes == len(data) else data[:n_bytes])
        if n_bytes < len(data):
            self._unread += data[n_bytes:]
            self._schedule_rest()

    def _read_request(self, data: bytes) -> bytes:
        """Pass on the bytes of the HTTP request, and return those that follow it."""
        start = (self._tail + data).find(_REQUEST_END)
        end = len(data) if start < 0 else start + len(_REQUEST_END) - len(self._tail)
        self._has_request = start >= 0
        self._tail = (self._tail + data)[-3:]
        super().data_received(data[:end])
        return data[end:]

    def _affordable(self, data: bytes | bytearray) -> int:
        """Return how many of the bytes may be read now, and charge their frames to the budget."""
        now = self.loop.time()
        self._allowance = min(BURST, self._allowance + RATE * (now - self._counted_at))
        self._counted_at = now
        if self._allowance >= BURST / 2:
            self._over_since = None
        n_bytes, count = self._frames.measure(data, min(AT_A_TIME, int(self._allowance)))
        self._allowance -= count
        return n_bytes

    def _schedule_rest(self) -> None:
        """Schedule the remaining bytes: other connections are served, and the budget refills meanwhile."""
        self._pausable.over_budget(True)
        is_over = self._allowance < 1
        self._timer = self.loop.call_later(AT_A_TIME / RATE if is_over else 0.0, self._on_timer)
        if is_over and self._over_since is None:
            self._over_since = self.loop.time()

    def _on_timer(self) -> None:
        self._timer = None
        if self._over_since is not None and self.loop.time() - self._over_since > PATIENCE_S:
            self.cut_off()
        else:
            self._resume()

    def _resume(self) -> None:
        if self._timer is not None or self._pausable.is_full:
            return
        n_bytes = self._affordable(self._unread)
        if n_bytes:
            piece = bytes(self._unread[:n_bytes])
            del self._unread[:n_bytes]
            super().data_received(piece)
        if self._unread:
            self._schedule_rest()
        else:
            self._pausable.over_budget(False)

    def _discard_unread(self) -> None:
        self._unread.clear()
        if self._timer is not None:
            self._timer.cancel()

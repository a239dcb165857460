"""Who may stand at the door: connections that have not said who they are, so many in all and so many of one address.

Nobody is turned away because others came first and say nothing. Whoever is one too many takes the place of the oldest that still
says nothing: a robot says its token and hello within milliseconds, and from then on it is no longer at the door.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import os
import socket
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from smolact.errors import ServerError

PER_ADDRESS = 32
"""Connections of one address (of IPv6: of one network of 64 bits) that have not said who they are."""

Address = tuple[Any, ...]


class PendingConnections:
    """Connections that have not said who they are.

    Args:
        most: of them, of all addresses.
        on_turned_out: is called for each that had to make room.
    """

    def __init__(self, most: int, on_turned_out: Callable[[], None] = lambda: None) -> None:
        self._most, self._on_turned_out = most, on_turned_out
        self._waiting: dict[Address, socket.socket] = {}  # the oldest first

    def __len__(self) -> int:
        return len(self._waiting)

    def enter(self, connection: socket.socket, address: Address) -> None:
        """Somebody came; if there are too many, the oldest of the same address goes, or of the address with the most."""
        self._waiting = {key: one for key, one in self._waiting.items() if one.fileno() >= 0}
        crowds = Counter(_network(key) for key in self._waiting)
        crowd = _network(address)
        if crowds[crowd] < PER_ADDRESS and len(self._waiting) >= self._most:
            crowd = crowds.most_common(1)[0][0]
        if crowds[crowd] >= PER_ADDRESS or len(self._waiting) >= self._most:
            oldest = next(key for key in self._waiting if _network(key) == crowd)
            self._on_turned_out()
            _hang_up(self._waiting.pop(oldest))
        self._waiting[address[:2]] = connection

    def leave(self, address: Address) -> None:
        """This one has said who it is."""
        self._waiting.pop(address[:2], None)

    def clear(self) -> None:
        """Nobody is waited for any more."""
        for connection in self._waiting.values():
            _hang_up(connection)
        self._waiting.clear()


class LimitedSocket(socket.socket):
    """A listening socket that shows everybody into a hall, before TLS and before a byte was read.

    An event loop that accepts connections without asking the socket (Windows has one) passes it by.
    """

    hall: PendingConnections

    def accept(self) -> tuple[socket.socket, Any]:
        """The next connection, and its address."""
        connection, address = super().accept()
        self.hall.enter(connection, address)
        return connection, address


async def open_sockets(host: str, port: int, hall: PendingConnections) -> list[LimitedSocket]:
    """Doors at every address of `host`, all at one port; 0 for any that is free.

    Raises:
        ServerError: the address can't be listened at.
    """
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        return _bound(found, hall)
    except OSError as error:
        raise ServerError(
            f"Nothing can listen at {host}, port {port}: {error.strerror or error}. Choose another with --host and --port."
        ) from error


def _bound(found: Iterable[tuple[Any, ...]], hall: PendingConnections) -> list[LimitedSocket]:
    doors: list[LimitedSocket] = []
    missing: OSError | None = None
    try:
        for family, kind, protocol, _, address in dict.fromkeys(found):
            port = doors[0].getsockname()[1] if doors else address[1]
            try:
                door = LimitedSocket(family, kind, protocol)
            except OSError as error:  # this machine does not speak that family
                missing = error
                continue
            doors.append(door)
            door.hall = hall
            if os.name == "posix":
                door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                door.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                door.bind((address[0], port, *address[2:]))
            except OSError as error:
                if error.errno != errno.EADDRNOTAVAIL:
                    raise
                missing = error  # a name may stand for an address that this machine does not have
                doors.pop().close()
        if not doors:
            raise missing or OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
    except BaseException:
        for door in doors:
            door.close()
        raise
    return doors


def _network(address: Address) -> str:
    host = str(address[0]).partition("%")[0]
    if ":" not in host:
        return host
    return str(ipaddress.ip_network((host, 64), strict=False))


def _hang_up(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it has gone by itself
        connection.shutdown(socket.SHUT_RDWR)

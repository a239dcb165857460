"""Limits on connections that have not completed the handshake, in all and per address.

Silent connections never block new ones: above a limit, a new connection replaces the oldest pending one. A robot sends its token and
hello within milliseconds and is no longer pending then.
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
"""Limit of pending connections of one address (IPv6: of one /64 network)."""

Address = tuple[Any, ...]


class PendingConnections:
    """Connections that have not completed the handshake.

    Args:
        limit: their limit over all addresses.
        on_evicted: called for each connection that is closed to admit another.
    """

    def __init__(self, limit: int, on_evicted: Callable[[], None] = lambda: None) -> None:
        self._limit, self._on_evicted = limit, on_evicted
        self._connections: dict[Address, socket.socket] = {}  # the oldest first

    def __len__(self) -> int:
        return len(self._connections)

    def enter(self, connection: socket.socket, address: Address) -> None:
        """Add a connection; above a limit, close the oldest of its network, or of the network with the most."""
        self._connections = {key: other for key, other in self._connections.items() if other.fileno() >= 0}
        counts = Counter(_network(key) for key in self._connections)
        network = _network(address)
        if counts[network] < PER_ADDRESS and len(self._connections) >= self._limit:
            network = counts.most_common(1)[0][0]
        if counts[network] >= PER_ADDRESS or len(self._connections) >= self._limit:
            oldest = next(key for key in self._connections if _network(key) == network)
            self._on_evicted()
            _shut_down(self._connections.pop(oldest))
        self._connections[address[:2]] = connection

    def leave(self, address: Address) -> None:
        """Remove the connection of a client that completed the handshake."""
        self._connections.pop(address[:2], None)

    def clear(self) -> None:
        """Close all pending connections."""
        for connection in self._connections.values():
            _shut_down(connection)
        self._connections.clear()


class LimitedSocket(socket.socket):
    """A listening socket that registers each connection as pending, before TLS and before a byte is read.

    An event loop that does not accept through the socket (the proactor loop of Windows) bypasses it.
    """

    pending: PendingConnections

    def accept(self) -> tuple[socket.socket, Any]:
        """Return the next connection and its address."""
        connection, address = super().accept()
        self.pending.enter(connection, address)
        return connection, address


async def open_sockets(host: str, port: int, pending: PendingConnections) -> list[LimitedSocket]:
    """Return listening sockets at every address of `host`, all at one port; 0 for any free one.

    Raises:
        ServerError: the address cannot be bound.
    """
    try:
        addresses = await asyncio.get_running_loop().getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        return _bind(addresses, pending)
    except OSError as error:
        raise ServerError(
            f"Nothing can listen at {host}, port {port}: {error.strerror or error}. Choose another with --host and --port."
        ) from error


def _bind(addresses: Iterable[tuple[Any, ...]], pending: PendingConnections) -> list[LimitedSocket]:
    listeners: list[LimitedSocket] = []
    failure: OSError | None = None
    try:
        for family, kind, protocol, _, address in dict.fromkeys(addresses):
            port = listeners[0].getsockname()[1] if listeners else address[1]
            try:
                listener = LimitedSocket(family, kind, protocol)
            except OSError as error:  # the address family is not supported here
                failure = error
                continue
            listeners.append(listener)
            listener.pending = pending
            if os.name == "posix":
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                listener.bind((address[0], port, *address[2:]))
            except OSError as error:
                if error.errno != errno.EADDRNOTAVAIL:
                    raise
                failure = error  # a host name may resolve to an address that this machine lacks
                listeners.pop().close()
        if not listeners:
            raise failure or OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
    except BaseException:
        for listener in listeners:
            listener.close()
        raise
    return listeners


def _network(address: Address) -> str:
    host = str(address[0]).partition("%")[0]
    if ":" not in host:
        return host
    return str(ipaddress.ip_network((host, 64), strict=False))


def _shut_down(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):  # already closed
        connection.shutdown(socket.SHUT_RDWR)

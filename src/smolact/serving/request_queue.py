"""The request queue: one slot per key holds the newest request; first in, first out; requests of one kind form a batch."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

S = TypeVar("S", bound=Hashable)
Q = TypeVar("Q")


class RequestQueue(Generic[S, Q]):
    """A queue with one slot per key (a session and its slot number), which bounds its length."""

    def __init__(self) -> None:
        self._slots: dict[S, Q] = {}

    def __len__(self) -> int:
        return len(self._slots)

    def put(self, session: S, request: Q) -> Q | None:
        """Enqueue a request; returns the older one that it replaces, whose position it takes."""
        replaced = self._slots.get(session)
        self._slots[session] = request
        return replaced

    def drop(self, session: S) -> Q | None:
        """Remove and return the request in a slot, if there is one."""
        return self._slots.pop(session, None)

    def take(self, limit: int, kind: Callable[[Q], Hashable]) -> list[tuple[S, Q]]:
        """Remove and return the oldest request and up to `limit` − 1 more of its kind, in order."""
        if not self._slots:
            return []
        first = kind(next(iter(self._slots.values())))
        taken = [(session, request) for session, request in self._slots.items() if kind(request) == first][
            :limit
        ]
        for session, _ in taken:
            del self._slots[session]
        return taken

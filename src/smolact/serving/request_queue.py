"""The request queue: a slot holds the newest request; the oldest comes first, sessions take turns, one kind forms a batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

S = TypeVar("S", bound=Hashable)
Q = TypeVar("Q")


class RequestQueue(Generic[S, Q]):
    """A queue with slots, which bound its length. A slot is a session with a number."""

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

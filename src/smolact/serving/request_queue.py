"""Who is answered next: one question a session waits, the newest; who came first is first; alike ones go together."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

S = TypeVar("S", bound=Hashable)
Q = TypeVar("Q")


class RequestQueue(Generic[S, Q]):
    """One slot for each session. It can't hold more questions than there are sessions."""

    def __init__(self) -> None:
        self._slots: dict[S, Q] = {}

    def __len__(self) -> int:
        return len(self._slots)

    def put(self, session: S, question: Q) -> Q | None:
        """Let a question wait; returns the older one whose place it takes. Its turn stays that of the older one."""
        replaced = self._slots.get(session)
        self._slots[session] = question
        return replaced

    def drop(self, session: S) -> Q | None:
        """Forget the session's question, if one waits."""
        return self._slots.pop(session, None)

    def take(self, most: int, kind: Callable[[Q], Hashable]) -> list[tuple[S, Q]]:
        """The question that has waited longest, and up to `most` − 1 more of its kind, in their order."""
        if not self._slots:
            return []
        first = kind(next(iter(self._slots.values())))
        taken = [(session, question) for session, question in self._slots.items() if kind(question) == first][
            :most
        ]
        for session, _ in taken:
            del self._slots[session]
        return taken

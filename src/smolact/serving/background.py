"""A policy server in a thread of this process, for notebooks, tests and benchmarks."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from smolact.runtime.policy import Policy
from smolact.serving.auth import Auth
from smolact.serving.server import PolicyServer


@contextlib.contextmanager
def serving(
    policy: Policy,
    access: Auth | None = None,
    *,
    server: type[PolicyServer] = PolicyServer,
    **settings: Any,
) -> Iterator[str]:
    """Serve in a thread while the block runs; yields the address.

    Args:
        access: the address and access control; a free local port if None.
        settings: further arguments of `PolicyServer`.

    Raises:
        ServerError: the address cannot be bound.
    """
    ready = threading.Event()
    state: list[Any] = []

    async def serve_until_cancelled() -> None:
        instance = server(policy, access or Auth(port=0), **settings)
        task = asyncio.current_task()
        assert task is not None
        state[:] = [asyncio.get_running_loop(), task]

        def on_started(url: str) -> None:
            state.append(url)
            ready.set()

        with contextlib.suppress(asyncio.CancelledError):
            await instance.run(on_started)

    def run() -> None:
        try:
            asyncio.run(serve_until_cancelled())
        except BaseException as error:
            state.append(error)
            ready.set()

    thread = threading.Thread(target=run, name="smolact-server", daemon=True)
    thread.start()
    ready.wait()
    if isinstance(state[-1], BaseException):
        raise state[-1]
    try:
        yield state[2]
    finally:
        loop, task = state[:2]
        with contextlib.suppress(RuntimeError):  # it has ended by itself
            loop.call_soon_threadsafe(task.cancel)
        thread.join()
        if isinstance(state[-1], BaseException):
            raise state[-1]

"""A server beside whatever else a process does: for notebooks, tests, and measurements."""

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
    """Serve in a thread for as long as the block runs; gives the address.

    Args:
        policy: what is served.
        access: any free port of this machine when not given.
        server: which one.
        settings: as `PolicyServer` takes them.

    Raises:
        ServerError: the address can't be listened at.
    """
    ready = threading.Event()
    found: list[Any] = []

    async def live() -> None:
        one = server(policy, access or Auth(port=0), **settings)
        task = asyncio.current_task()
        assert task is not None
        found[:] = [asyncio.get_running_loop(), task]

        def tell(url: str) -> None:
            found.append(url)
            ready.set()

        with contextlib.suppress(asyncio.CancelledError):
            await one.run(tell)

    def run() -> None:
        try:
            asyncio.run(live())
        except BaseException as error:
            found.append(error)
            ready.set()

    thread = threading.Thread(target=run, name="smolact-server", daemon=True)
    thread.start()
    ready.wait()
    if isinstance(found[-1], BaseException):
        raise found[-1]
    try:
        yield found[2]
    finally:
        loop, task = found[:2]
        loop.call_soon_threadsafe(task.cancel)
        thread.join()

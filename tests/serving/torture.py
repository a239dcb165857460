"""A server under siege: a soak, clients that hang up in the middle of a frame, bad neighbours, a long cold start.

    python -m tests.serving.torture [REQUESTS=1000000] [--hang-ups=1000] [--output=FILE]

The server is a process of its own that tells its memory, descriptors and threads. Each part raises where it falls short, and
tells what it measured.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import random
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from smolact.runtime.policy import Request
from smolact.serving.background import serving
from smolact_client import RemotePolicy, Schema
from smolact_client.connection import Address, Connection
from smolact_client.protocol import Message, MessageKind, encode
from tests.serving.worlds import raw

STATE = "observation.state"
SCHEMA = Schema("echo", {}, {STATE: 3}, 3, 5, 5)


class Quick:
    """Answers with the state at once; with a hundred thousand numbers where that is asked for.

    Args:
        warm_up: seconds that the first answer takes; all of them are spent computing.
    """

    schema = SCHEMA

    def __init__(self, warm_up: float = 0.0) -> None:
        self._seconds = warm_up
        self._large = np.zeros((30_000, 3), np.float32)

    def warm_up(self, max_batch: int) -> None:
        """Keep a core busy, and the interpreter with it."""
        end = time.monotonic() + self._seconds
        while time.monotonic() < end:
            sum(range(10_000))

    def predict(self, questions: Sequence[Request]) -> list[NDArray[np.float32]]:
        """The state, five times."""
        return [
            self._large if one.task == "all" else np.tile(one.observation[STATE], (5, 1)) for one in questions
        ]


class Use(NamedTuple):
    """What a process holds."""

    kilobytes: int
    descriptors: int
    threads: int


def used() -> Use:
    """What this process holds now."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return Use(
        int(status["VmRSS"].split()[0]),
        sum(1 for _ in Path("/proc/self/fd").iterdir()),
        int(status["Threads"].split()[0]),
    )


def _live(pipe: Pipe, warm_up: float) -> None:
    with serving(Quick(warm_up)) as url:
        pipe.send(url)
        while pipe.recv():
            pipe.send(used())


class Server(NamedTuple):
    """A server elsewhere."""

    url: str
    pipe: Pipe

    def used(self, descriptors: int | None = None) -> Use:
        """What it holds now; with a number of descriptors, as soon as it holds no more than that, or after ten seconds."""
        end = time.monotonic() + 10
        while True:
            self.pipe.send(True)
            found: Use = self.pipe.recv()
            if descriptors is None or found.descriptors <= descriptors or time.monotonic() > end:
                return found
            time.sleep(0.01)


@contextlib.contextmanager
def server(warm_up: float = 0.0) -> Iterator[Server]:
    """A server in a process of its own."""
    here, there = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_live, args=(there, warm_up))
    process.start()
    try:
        yield Server(here.recv(), here)
    finally:
        here.send(False)
        process.join()


def soak(requests: int, clients: int = 8, renew: int = 1000) -> dict[str, Any]:
    """Many questions, each answer looked at; a session in `renew` questions is hung up and begun anew.

    Raises:
        AssertionError: a wrong answer; memory that is not within 1%, or 2 MB, of what it was after a twentieth of the questions;
            descriptors or threads that were not given back.
    """
    wrong = 0

    async def ask(url: str, number: int, count: int) -> None:
        nonlocal wrong
        done = 0
        while done < count:
            link = await Connection.open(Address(url), "soak", None)
            await link.until_ready()
            for turn in range(min(renew, count - done)):
                mine = np.array([number, done + turn, turn], np.float32)
                answer = await link.ask({"task": "go"}, {STATE: mine})
                wrong += not np.array_equal(answer.arrays["action"], np.tile(mine, (5, 1)))  # type: ignore[arg-type]
            done += renew
            await link.close()

    async def several(url: str, count: int) -> None:
        await asyncio.gather(*(ask(url, number, count // clients) for number in range(clients)))

    with server() as one:
        samples = []
        began, idle = time.monotonic(), one.used()
        for _ in range(20):
            asyncio.run(several(one.url, requests // 20))
            samples.append((one.used(idle.descriptors), used()))
        seconds = time.monotonic() - began
    (first, mine), (last, mine_last) = samples[0], samples[-1]
    assert not wrong, f"{wrong} answers belong to other questions"
    for before, after in ((first, last), (mine, mine_last)):
        assert after.kilobytes <= before.kilobytes + max(2048, 0.01 * before.kilobytes), samples
        assert after[1:] == before[1:], samples
    return {
        "requests": requests,
        "clients": clients,
        "sessions": 20 * clients * -(-requests // 20 // clients // renew),
        "requests a second": round(requests / seconds),
        "wrong answers": wrong,
        "server, memory after 5% and at the end, MB": [
            round(one.kilobytes / 1024, 2) for one in (first, last)
        ],
        "clients, memory after 5% and at the end, MB": [
            round(one.kilobytes / 1024, 2) for one in (mine, mine_last)
        ],
        "server, descriptors": [first.descriptors, last.descriptors],
        "server, threads": [first.threads, last.threads],
    }


def hang_up(times: int, seed: int = 0) -> dict[str, Any]:
    """Clients that vanish in the middle of an observation's frame, by a goodbye of TCP or without one.

    Raises:
        AssertionError: somebody else got no answer or a wrong one, or the server kept something of them.
    """
    draw = random.Random(seed)
    reset = (1).to_bytes(4, sys.byteorder) + bytes(4)  # linger for 0 s: whoever closes is gone at once
    with server() as one, RemotePolicy(one.url, timeout=30) as other:
        idle = one.used()

        def vanish() -> None:
            with raw(one.url) as client:
                question = Message(
                    MessageKind.OBSERVATION,
                    client.session,
                    2,
                    2,
                    {"task": "go"},
                    {STATE: np.ones(3, np.float32)},
                )
                whole = encode(question)
                frame = bytes([0x82, 0x80 | 126]) + len(whole).to_bytes(2, "big") + bytes(4) + whole
                client.socket.socket.sendall(frame[: draw.randrange(1, len(frame))])
                if draw.random() < 0.5:
                    client.socket.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
                    client.socket.socket.close()
                else:
                    client.socket.socket.shutdown(socket.SHUT_RDWR)

        def still_answers(value: float) -> None:
            state = np.full(3, value, np.float32)
            assert other.predict_action_chunk({STATE: state}, "go")[0, 0] == value

        for _ in range(20):  # what is made once
            vanish()
        still_answers(-1)
        before = one.used(idle.descriptors)
        for number in range(times):
            vanish()
            if number % 20 == 0:
                still_answers(number)
        still_answers(-2)
        after = one.used(idle.descriptors)
        assert other.sessions == 1
    assert after[1:] == before[1:], (before, after)
    return {
        "times": times,
        "server, memory before and after, MB": [round(one.kilobytes / 1024, 2) for one in (before, after)],
        "server, descriptors": [before.descriptors, after.descriptors],
        "server, threads": [before.threads, after.threads],
    }


def _never_reads(url: str, stop: Any) -> None:
    """Asks for the largest answers and reads none, until it is cut off; then again."""
    os.nice(10)  # it is a machine of its own elsewhere: what counts is the work that it makes for the server
    while not stop.is_set():
        with contextlib.suppress(ConnectionClosed, OSError), raw(url, max_queue=1) as client:
            while not stop.wait(0.02):
                client.sequence += 1
                arrays = {STATE: np.zeros(3, np.float32)}
                client.send(
                    Message(
                        MessageKind.OBSERVATION,
                        client.session,
                        client.sequence,
                        client.sequence,
                        {"task": "all"},
                        arrays,
                    )
                )


def _sends_too_much(url: str, stop: Any) -> None:
    """Sends 64 MiB in a message, up to five times a second."""
    os.nice(10)
    large = bytes(2**26)
    while not stop.wait(0.2):
        with (
            contextlib.suppress(ConnectionClosed, OSError),
            connect(url, proxy=None, compression=None) as client,
        ):
            client.send(large)
            client.recv()


def bad_neighbours(seconds: float, rounds: int = 3) -> dict[str, Any]:
    """How long one client's answers take, alone, and beside one that never reads and one that sends too much; in turns."""
    spawn = multiprocessing.get_context("spawn")
    took: dict[str, list[float]] = {"alone": [], "slow reader": [], "oversize": []}
    with server() as one, RemotePolicy(one.url, timeout=30) as policy:
        for _ in range(rounds):
            for name, neighbour in (
                ("alone", None),
                ("slow reader", _never_reads),
                ("oversize", _sends_too_much),
            ):
                stop = spawn.Event()
                process = None
                if neighbour is not None:
                    process = spawn.Process(target=neighbour, args=(one.url, stop))
                    process.start()
                    time.sleep(2)
                end = time.monotonic() + seconds
                while time.monotonic() < end:
                    took[name].append(policy.ask({STATE: np.ones(3, np.float32)}, "go").seconds)
                    time.sleep(0.01)
                stop.set()
                if process is not None:
                    process.join()
        assert policy.sessions == 1
    found: dict[str, Any] = {}
    for name, values in took.items():
        p50, p99 = (round(1000 * float(value), 2) for value in np.quantile(values, (0.5, 0.99)))
        found[name] = {"answers": len(values), "p50, ms": p50, "p99, ms": p99}
    return found


def cold_start(seconds: float, clients: int = 8) -> dict[str, Any]:
    """Clients that come while a policy warms up, which keeps the interpreter busy: all wait, none is lost.

    Raises:
        AssertionError: a connection was lost, or somebody got no answer.
    """
    waited: list[float] = []
    sessions: list[int] = []

    def come(url: str, after: float) -> None:
        time.sleep(after)
        began = time.monotonic()
        with RemotePolicy(url, ready_timeout=10 * seconds + 60, connect_timeout=60, timeout=60) as policy:
            waited.append(time.monotonic() - began)
            assert policy.predict_action_chunk({STATE: np.ones(3)}, "go")[0, 0] == 1
            sessions.append(policy.sessions)

    with server(seconds) as one:
        threads = [
            threading.Thread(target=come, args=(one.url, number * seconds / 2 / clients))
            for number in range(clients)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sessions == [1] * clients, sessions
    return {
        "warm-up, s": seconds,
        "clients": clients,
        "longest wait, s": round(max(waited), 1),
        "connections lost": sum(sessions) - clients,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Everything, with its figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("requests", type=int, nargs="?", default=1_000_000)
    parser.add_argument("--hang-ups", type=int, default=1000)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(arguments)
    parts = {
        "cold start": lambda: cold_start(30),
        "hung up in the middle of a frame": lambda: hang_up(options.hang_ups),
        "bad neighbours": lambda: bad_neighbours(10),
        "soak": lambda: soak(options.requests),
    }
    found: dict[str, Any] = {"machine": f"{os.cpu_count()} cores", "load at the start": os.getloadavg()[0]}
    for name, part in parts.items():
        found[name] = part()
        sys.stdout.write(f"server, {name}: {json.dumps(found[name], ensure_ascii=False)}\n")
        sys.stdout.flush()
        if options.output is not None:
            options.output.write_text(
                json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
            )


if __name__ == "__main__":
    main()

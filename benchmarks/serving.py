"""Transport on loopback: how long from an observation to its answer, when the policy answers at once.

    python benchmarks/serving.py [--seconds=20] [--output=FILE]

The server is a process of its own; the clients of one setting share another, each in its thread, at 10 observations a second:
two cameras of 480×640, raw or as JPEG (whose making is counted too), a state of 6 numbers, an answer of 50×6. Memory is the
server's, at its highest. Clients begin at times spread over a tenth of a second, as robots do.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import resource
import sys
import threading
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smolact.runtime.policy import Request
from smolact.serving.background import serving
from smolact_client import RemotePolicy, Schema

CAMERAS = ("observation.images.front", "observation.images.wrist")
STATE = "observation.state"
RATE = 10.0
PICTURES = 8


class Instant:
    """Answers at once."""

    schema = Schema("instant", dict.fromkeys(CAMERAS, (480, 640)), {STATE: 6}, 6, 50, 50)

    def __init__(self) -> None:
        self._chunk = np.zeros((50, 6), np.float32)

    def warm_up(self, max_batch: int) -> None:
        """Nothing is cold."""

    def predict(self, questions: Sequence[Request]) -> list[NDArray[np.float32]]:
        """The same, whatever is asked."""
        return [self._chunk] * len(questions)


def pictures() -> list[NDArray[np.uint8]]:
    """Smooth shapes with a camera's noise: as hard to compress as a room is."""
    random = np.random.default_rng(0)
    found = []
    for _ in range(PICTURES):
        coarse = np.kron(random.integers(0, 256, (15, 20, 3)), np.ones((32, 32, 1)))
        found.append((coarse + random.normal(0, 3, coarse.shape)).clip(0, 255).astype(np.uint8))
    return found


def live(pipe: Connection) -> None:
    """The server's process: tells its address, and at the end its highest memory and the seconds of processor it took."""
    with serving(Instant(), max_clients=64, max_batch=32) as url:
        pipe.send((url, _highest_mb()))
        pipe.recv()
        pipe.send((_highest_mb(), time.process_time()))


def _highest_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def drive(pipe: Connection, url: str, clients: int, images: Any, seconds: float) -> None:
    """The clients' process: tells how long each answer took, how many came too late for the next observation, and sizes."""
    shown = pictures()
    took: list[list[float]] = [[] for _ in range(clients)]
    failed = [0] * clients
    ready = threading.Barrier(clients)

    def robot(number: int) -> None:
        with RemotePolicy(url, images=images) as policy:
            seen: dict[str, Any] = {STATE: np.zeros(6, np.float32)}
            for turn in range(5):  # not counted
                policy.ask({**seen, **dict.fromkeys(CAMERAS, shown[turn])}, "go")
            ready.wait()
            begin = time.monotonic() + 0.2 + number / clients / RATE
            for turn in range(round(seconds * RATE)):
                time.sleep(max(0.0, begin + turn / RATE - time.monotonic()))
                frames = {camera: shown[(turn + at) % PICTURES] for at, camera in enumerate(CAMERAS)}
                try:
                    took[number].append(policy.ask({**seen, **frames}, "go", timeout=2).seconds)
                except TimeoutError:
                    failed[number] += 1

    threads = [threading.Thread(target=robot, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pipe.send(([value for one in took for value in one], sum(failed), time.process_time()))


def measure(clients: int, images: str, seconds: float) -> dict[str, Any]:
    """One setting, with a server and clients of its own."""
    spawn = multiprocessing.get_context("spawn")
    (here, there), (mine, theirs) = spawn.Pipe(), spawn.Pipe()
    server = spawn.Process(target=live, args=(there,))
    server.start()
    url, before = here.recv()
    began = time.monotonic()
    robots = spawn.Process(target=drive, args=(theirs, url, clients, images, seconds))
    robots.start()
    took, failed, client_cpu = mine.recv()
    wall = time.monotonic() - began
    here.send(None)
    highest, server_cpu = here.recv()
    for process in (robots, server):
        process.join()
    p50, p90, p99 = (1000 * float(value) for value in np.quantile(took, (0.5, 0.9, 0.99)))
    return {
        "clients": clients,
        "images": images,
        "answers": len(took),
        "timed out": failed,
        "p50, ms": round(p50, 2),
        "p90, ms": round(p90, 2),
        "p99, ms": round(p99, 2),
        "longest, ms": round(1000 * max(took), 2),
        "server's memory at first, MB": round(before, 1),
        "server's memory at its highest, MB": round(highest, 1),
        "server's processor, share of one": round(server_cpu / wall, 2),
        "clients' processor, share of one": round(client_cpu / wall, 2),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure all settings."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--clients", type=int, nargs="*", default=[1, 8, 32])
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(arguments)
    load = os.getloadavg()[0]
    results = []
    for images in ("raw", "jpeg"):
        for clients in options.clients:
            results.append(measure(clients, images, options.seconds))
            sys.stderr.write(json.dumps(results[-1], ensure_ascii=False) + "\n")
    found = {
        "what": (__doc__ or "").splitlines()[0],
        "command": f"python benchmarks/serving.py --seconds={options.seconds:g}",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "load of the machine at the start": round(load, 2),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "results": results,
    }
    text = json.dumps(found, indent=2, ensure_ascii=False) + "\n"
    if options.output is None:
        sys.stdout.write(text)
    else:
        options.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

"""Transport beside LeRobot's policy server: one robot, two raw cameras of 480×640, a policy that answers at once, in one run.

    pip install grpcio
    python benchmarks/serving_beside_lerobot.py [--rounds=3] [--seconds=20] [--output=FILE]

With the interpreter of an environment that holds LeRobot 0.6.1 (see compare_lerobot.py). The two take turns. LeRobot's server and its
client's own calls are used (gRPC, pickled observations), with everything in their favour that a user could choose: its pause of a
thirtieth of a second before each answer is switched off, so is its log, no observation is filtered out as similar, and its policy gives
the answer without looking, not even at the pickled pictures. `with its pause` is the server as it is configured by default.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import pickle
import platform
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent import futures
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from serving import CAMERAS, PICTURES, RATE, STATE, measure, pictures

WARM_UP = 5
SIDES = ("smolact", "LeRobot", "LeRobot, with its pause")


def live(pipe: Connection, folder: str, pause: bool) -> None:
    """The process of LeRobot's server, with a policy that answers at once."""
    os.chdir(folder)  # its import makes a folder of logs
    import grpc
    import torch
    from lerobot.async_inference.configs import PolicyServerConfig
    from lerobot.async_inference.helpers import TimedAction, TimedObservation
    from lerobot.async_inference.policy_server import PolicyServer
    from lerobot.transport import services_pb2_grpc

    class Instant(PolicyServer):  # type: ignore[misc]
        def _predict_action_chunk(self, observation_t: TimedObservation) -> list[TimedAction]:
            now, first = observation_t.get_timestamp(), observation_t.get_timestep()
            return [TimedAction(timestamp=now, timestep=first + i, action=torch.zeros(6)) for i in range(50)]

    logging.disable(logging.WARNING)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = PolicyServerConfig(host="127.0.0.1", port=port)
    if not pause:
        config.inference_latency = 0.0
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
    services_pb2_grpc.add_AsyncInferenceServicer_to_server(Instant(config), server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    pipe.send(port)
    pipe.recv()
    server.stop(None)


def drive(pipe: Connection, folder: str, port: int, seconds: float) -> None:
    """The process of LeRobot's robot: tells how long each answer took."""
    os.chdir(folder)
    import grpc
    from lerobot.async_inference.helpers import TimedObservation
    from lerobot.transport import services_pb2, services_pb2_grpc
    from lerobot.transport.utils import grpc_channel_options, send_bytes_in_chunks

    shown = pictures()
    took = []
    with grpc.insecure_channel(f"127.0.0.1:{port}", grpc_channel_options()) as channel:
        stub = services_pb2_grpc.AsyncInferenceStub(channel)
        stub.Ready(services_pb2.Empty())
        begin = time.monotonic() + 0.2
        for turn in range(round(seconds * RATE) + WARM_UP):
            time.sleep(max(0.0, begin + turn / RATE - time.monotonic()))
            seen: dict[str, Any] = {STATE: np.zeros(6, np.float32), "task": "go"}
            seen |= {camera: shown[(turn + at) % PICTURES] for at, camera in enumerate(CAMERAS)}
            answer = stub.GetActions.future(
                services_pb2.Empty()
            )  # its client has a thread that waits for answers
            began = time.perf_counter()
            asked = TimedObservation(timestamp=time.time(), timestep=turn, observation=seen, must_go=True)
            stub.SendObservations(send_bytes_in_chunks(pickle.dumps(asked), services_pb2.Observation))
            actions = pickle.loads(answer.result(timeout=2).data)
            took.append(time.perf_counter() - began)
            if len(actions) != 50:
                raise SystemExit("LeRobot's server gave no chunk.")
    pipe.send(took[WARM_UP:])


def lerobot(seconds: float, pause: bool) -> list[float]:
    """Seconds that each answer of LeRobot's server took."""
    spawn = multiprocessing.get_context("spawn")
    (here, there), (mine, theirs) = spawn.Pipe(), spawn.Pipe()
    with tempfile.TemporaryDirectory() as folder:
        server = spawn.Process(target=live, args=(there, folder, pause))
        server.start()
        robot = spawn.Process(target=drive, args=(theirs, folder, here.recv(), seconds))
        robot.start()
        took: list[float] = mine.recv()
        here.send(None)
        for process in (robot, server):
            process.join()
    return took


def row(took: Sequence[float]) -> dict[str, Any]:
    """Milliseconds of one side."""
    p50, p90, p99 = (round(1000 * float(value), 2) for value in np.quantile(took, (0.5, 0.9, 0.99)))
    return {"answers": len(took), "p50, ms": p50, "p90, ms": p90, "p99, ms": p99}


def main() -> None:
    """Measure all sides in turns."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    load = os.getloadavg()[0]
    rounds: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for _ in range(options.rounds):
        ours = measure(1, "raw", options.seconds)
        rounds["smolact"].append({key: ours[key] for key in ("answers", "p50, ms", "p90, ms", "p99, ms")})
        for side in SIDES[1:]:
            rounds[side].append(row(lerobot(options.seconds, side.endswith("pause"))))
        for side in SIDES:
            sys.stderr.write(f"{side:>24}: {rounds[side][-1]}\n")
    found = {
        "what": (__doc__ or "").splitlines()[0],
        "command": f"python benchmarks/serving_beside_lerobot.py --rounds={options.rounds} --seconds={options.seconds:g}",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "load of the machine at the start": round(load, 2),
        "versions": {"python": platform.python_version(), "lerobot": version("lerobot"), "grpcio": version("grpcio")},
        "sides": {
            side: {
                "p50, ms, median of rounds": float(np.median([one["p50, ms"] for one in rounds[side]])),
                "p99, ms, median of rounds": float(np.median([one["p99, ms"] for one in rounds[side]])),
                "rounds": rounds[side],
            }
            for side in SIDES
        },
    }  # fmt: skip
    text = json.dumps(found, indent=2) + "\n"
    if options.output is None:
        sys.stdout.write(text)
    else:
        options.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

"""Children to be killed, in milliseconds each: forked by a process that has imported everything and started no thread.

A job is a line of JSON in, `{"work", "acknowledgements", "moment", ...}`; what became of it is a line out. The child does
the work, acknowledges to a pipe, and is killed after so many acknowledgements, `moment` (0 to 1) into the next piece.
"""

from __future__ import annotations

import functools
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

TOP = Path(__file__).parent.parent.parent
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([str(TOP), str(TOP / "src"), os.environ.get("PYTHONPATH", "")]),
    "OMP_NUM_THREADS": "1",
}
BEGUN = 2**32 - 1  # acknowledged when a child has resumed

Work = Callable[[dict[str, Any], Callable[[int], None]], None]


class Nursery:
    """The process that bears the children; `works` is the module that has the work in its `WORKS`."""

    def __init__(self, works: str) -> None:
        code = f"from tests.recording.nursery import bear_children; from {works} import WORKS; bear_children(WORKS)"
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=TOP,
            env=ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def kill_one(self, work: str, acknowledgements: int, moment: float, **job: Any) -> dict[str, Any]:
        """Have a child killed: `said` (the last number acknowledged, or None), `begun`, `killed` (or it was done before).

        Raises:
            AssertionError: it failed by itself.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        job |= {"work": work, "acknowledgements": acknowledgements, "moment": moment}
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the nursery died"
        told = dict(json.loads(line))
        assert told["status"] in (0, -signal.SIGKILL), f"the child failed by itself: {told}"
        return told

    def __enter__(self) -> Nursery:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate()


def bear_children(works: dict[str, Work]) -> None:
    """The nursery's loop."""
    usual: dict[str, float] = {}  # seconds that a piece of a work takes
    for line in sys.stdin:
        job = json.loads(line)
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.dup2(2, 1)  # what a child prints is no answer of the nursery
                works[job["work"]](job, functools.partial(_acknowledge, writer))
                status = 0
            except BaseException:
                sys.excepthook(*sys.exc_info())
            finally:
                os._exit(status)
        os.close(writer)
        said, begun, done = None, False, False
        for piece in range(job["acknowledgements"] + 1):
            kind, began = f"{job['work']} {piece == 0}", time.monotonic()
            last = piece == job["acknowledgements"]
            longest = job["moment"] * usual.get(kind, 0.1)
            if not select.select([reader], [], [], longest if last else None)[0]:
                usual[kind] = 1.05 * usual.get(kind, 0.1)  # it may well take longer than was thought
                break
            usual[kind] = time.monotonic() - began
            number = os.read(reader, 4)
            if not number:
                done = True
                break
            begun, said = True, _said(number, said)
        if not done:
            os.kill(child, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        while number := os.read(reader, 4):
            begun, said = True, _said(number, said)
        os.close(reader)
        print(json.dumps({"said": said, "begun": begun, "status": status, "killed": status != 0}), flush=True)


def _acknowledge(pipe: int, number: int) -> None:
    os.write(pipe, number.to_bytes(4, "big"))


def _said(message: bytes, before: int | None) -> int | None:
    number = int.from_bytes(message, "big")
    return before if number == BEGUN else number
